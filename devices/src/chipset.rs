//! The small chips of a PC's board: timer, clock, keyboard controller, power management, resets.

pub mod acpi_pm;
pub mod debug_exit;
pub mod fw_cfg;
pub mod i6300esb;
pub mod i8042;
pub mod pit8254;
pub mod post_port;
pub mod pvpanic;
pub mod reset_control;
pub mod rtc_mc146818;

pub use acpi_pm::AcpiPm;
pub use debug_exit::DebugExit;
pub use fw_cfg::FwCfg;
pub use i6300esb::I6300Esb;
pub use i8042::I8042;
pub use pit8254::Pit8254;
pub use post_port::PostPort;
pub use pvpanic::Pvpanic;
pub use reset_control::{ResetControl, SystemControlPortA};
pub use rtc_mc146818::RtcMc146818;

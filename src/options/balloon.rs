//! `-device virtio-balloon-device` (QEMU, `-device NAME,help`).

use devices::virtio::balloon::BalloonOptions;

use super::devices::DeviceChoice;
use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// Reads its properties.
pub fn balloon(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let mut options = BalloonOptions::default();
    for pair in pairs {
        if pair.key == "id" {
            continue;
        }
        let is_on = syntax::on_off(&pair.value);
        let is_on = is_on.ok_or_else(|| context.bad(format!("{}= takes on or off", pair.key)))?;
        match pair.key.as_str() {
            "deflate-on-oom" => options.deflate_on_oom = is_on,
            "free-page-reporting" => options.free_page_reporting = is_on,
            // What QEMU has besides.
            other if is_on => return Err(context.not_built(&format!("{other}=on"))),
            _ => {}
        }
    }
    Ok(DeviceChoice::VirtioBalloon(options))
}

/// Says whether there is more than one.
pub fn check(devices: &[DeviceChoice]) -> Result<(), OptionError> {
    let balloons = devices.iter().filter(|device| matches!(device, DeviceChoice::VirtioBalloon(_)));
    if balloons.count() > 1 { Err(OptionError::BalloonTwice) } else { Ok(()) }
}

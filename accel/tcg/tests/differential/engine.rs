//! What is tested against the host: an accelerator's guest, or the host itself to test the tester.

#![expect(unsafe_code, reason = "door: a batch of the shared memory, owned between two messages")]

use accel::CpuHandle;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use crate::guest::{Guest, MakeAccelerator};
use crate::layout::CODE;
use crate::process::Native;
use crate::rng::Rng;
use crate::shared::{Input, Outcome, PROBE, Shared, ending};

/// Runs single cases on a native process, one message each way.
pub struct Single(Native);

impl Single {
    pub fn new(shared: &Shared) -> Self {
        Self(Native::start(shared).expect("a native process starts"))
    }

    pub fn run(&mut self, shared: &Shared, input: &Input, outcome: &mut Outcome) {
        // SAFETY: this process has the probe batch to itself between the messages below, and only one `Single` runs at a time.
        unsafe { shared.batch(PROBE)[0].input = *input };
        self.0.request(PROBE, 1);
        self.0.wait(shared);
        // SAFETY: the native process has given the batch back.
        unsafe { outcome.clone_from(&shared.batch(PROBE)[0].outcome) };
    }
}

/// Something that runs cases.
pub enum Engine<'a> {
    /// An accelerator's guest; made anew when the code arena starts over, since nobody tells it that its code changes.
    Accelerator(&'a MakeAccelerator, Box<Guest>),
    /// The host a second time: finds what is not deterministic.
    Native(Box<Single>),
    /// The host with a fault built in: ADC forgets the carry out now and then. It must be found.
    Broken(Box<Single>, Rng),
}

impl<'a> Engine<'a> {
    pub fn accelerator(make: &'a MakeAccelerator, shared: &Shared) -> Self {
        Self::Accelerator(make, Box::new(Guest::new(make, shared)))
    }

    /// The CPU that runs cases, if it is an accelerator's.
    pub fn cpu(&self) -> Option<CpuHandle> {
        match self {
            Self::Accelerator(_, guest) => Some(guest.cpu().clone()),
            _ => None,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Accelerator(_, guest) => guest.name(),
            Self::Native(_) => "native",
            Self::Broken(..) => "broken",
        }
    }

    /// The code arena starts over.
    pub fn renew(&mut self, shared: &Shared) {
        if let Self::Accelerator(make, guest) = self {
            **guest = Guest::new(*make, shared);
        }
    }

    pub fn run(&mut self, shared: &Shared, input: &Input, code: &[u8], outcome: &mut Outcome) {
        match self {
            Self::Accelerator(_, guest) => guest.run(shared, input, outcome),
            Self::Native(single) => single.run(shared, input, outcome),
            Self::Broken(single, rng) => {
                single.run(shared, input, outcome);
                let mut decoder = Decoder::new(input.bits, code, DecoderOptions::NONE);
                if decoder.iter().any(|instruction| instruction.mnemonic() == Mnemonic::Adc)
                    && outcome.vector == ending::DONE
                    && input.rip >= CODE
                    && !rng.percent(1)
                {
                    outcome.rflags ^= 1;
                }
            }
        }
    }
}

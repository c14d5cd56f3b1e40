//! Consoles, ports and balloons that cannot be: each is refused in one line that names it, with exit code 1.

#[path = "cli/support.rs"]
mod support;
#[path = "cli/tiny_guest.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tiny_guest;

use support::{Refusal, Scratch, refuse};

#[test]
fn options_of_consoles_and_balloons() {
    let scratch = Scratch::new("cli_console");
    let kernel = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    let kernel = kernel.to_str().expect("text");
    let refused = |words: &[&str], named: &str| {
        let words = [&["-accel", "tcg", "-display", "none", "-kernel", kernel], words].concat();
        let Refusal { stderr } = refuse(&words);
        assert!(stderr.contains(named), "{words:?}: {stderr:?} does not name {named:?}");
    };
    const BUS: [&str; 2] = ["-device", "virtio-serial-device"];
    let on_bus = |more: &[&str], named: &str| refused(&[&BUS, more].concat(), named);
    refused(
        &["-chardev", "null,id=c", "-device", "virtconsole,chardev=c"],
        "there is no virtio-serial-device",
    );
    on_bus(&["-device", "virtconsole,chardev=c"], "there is no -chardev with id=c");
    on_bus(&["-device", "virtconsole"], "needs chardev=NAME");
    on_bus(&["-device", "virtserialport,chardev=c,nme=x"], "unknown property 'nme' (did you mean 'name'?)");
    on_bus(
        &["-chardev", "pty,id=c", "-serial", "chardev:c", "-device", "virtserialport,chardev=c"],
        "chardev 'c' is for 1 device at most (mux=on shares it)",
    );
    on_bus(
        &["-icount", "shift=3,sleep=off", "-chardev", "pty,id=c", "-device", "virtserialport,chardev=c"],
        "-icount: what comes from chardev 'c' is not recorded",
    );
    refused(&["-device", "virtio-serial-device,max_ports=0"], "max_ports= takes 1 to 31");
    refused(&["-device", "virtio-balloon-device,free-page-hint=on"], "free-page-hint=on: not built yet");
    refused(&["-device", "virtio-balloon,deflate-on-oom=maybe"], "deflate-on-oom= takes on or off");
    refused(&["-device", "virtio-balloon,free-page-report=on"], "(did you mean 'free-page-reporting'?)");
    refused(&["-device", "virtio-balloon", "-device", "virtio-balloon"], "one balloon");
}

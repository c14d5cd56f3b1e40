//! Whole command lines.

use super::accel::TcgThread;
use super::chardev::ChardevKind;
use super::*;

fn line(words: &[&str]) -> Result<Command, OptionError> {
    parse(words.iter().map(OsString::from))
}

fn options(words: &[&str]) -> Options {
    match line(words).unwrap() {
        Command::Run(options) => *options,
        Command::Print(text) => panic!("printed {text}"),
    }
}

fn refusal(words: &[&str]) -> String {
    let text = line(words).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn a_usual_command_line() {
    let options = options(&[
        "-accel",
        "tcg,thread=single",
        "--M",
        "microvm",
        "-m",
        "512",
        "-kernel",
        "vmlinuz",
        "-initrd",
        "ird.gz",
        "-append",
        "console=ttyS0 a=b,c",
        "-nographic",
        "-no-reboot",
        "-nodefaults",
        "-vga",
        "none",
        "-echr",
        "0x02",
        "-name",
        "guest=g,process=p",
        "-d",
        "int,exec",
        "-D",
        "log",
        "--timeout",
        "1.5",
    ]);
    assert!(matches!(&options.accel[..], [AccelChoice::Tcg(tcg)] if tcg.thread == Some(TcgThread::Single)));
    assert_eq!(options.memory_bytes, 512 << 20);
    assert_eq!(options.append, "console=ttyS0 a=b,c");
    assert_eq!(serial(&options), [Some(&ChardevKind::Stdio { signal: false })]);
    assert_eq!(
        (options.escape, options.board.actions.no_reboot, options.board.actions.no_shutdown),
        (2, true, false)
    );
    assert_eq!((options.name.as_deref(), options.process_name.as_deref()), (Some("g"), Some("p")));
    assert_eq!(options.log, [LogItem::Int, LogItem::Exec].into());
    assert_eq!(options.timeout, Some(Duration::from_millis(1500)));
}

#[test]
fn serial_ports_that_nobody_asked_for() {
    let ports = |words: &[&str]| {
        let options = options(&[&["-kernel", "k"], words].concat());
        serial(&options).into_iter().map(|kind| kind.cloned()).collect::<Vec<_>>()
    };
    let stdio = Some(ChardevKind::Stdio { signal: false });
    assert_eq!(ports(&[]), std::slice::from_ref(&stdio));
    assert_eq!(ports(&["-nographic"]), std::slice::from_ref(&stdio));
    assert_eq!(ports(&["-display", "none"]), [Some(ChardevKind::Null)]);
    assert_eq!(ports(&["-nodefaults"]), []);
    assert_eq!(ports(&["-nographic", "-serial", "none", "-serial", "stdio"]), [None, stdio]);
}

/// What is behind the serial ports.
fn serial(options: &Options) -> Vec<Option<&ChardevKind>> {
    let kind = |id: &String| {
        let chardev = options.chardevs.iter().find(|chardev| chardev.id == *id);
        &chardev.expect("whatever is named is there").kind
    };
    options.serial.iter().map(|id| id.as_ref().map(kind)).collect()
}

#[test]
fn character_devices_are_found_and_not_shared_too_much() {
    const SHARED: &[&str] = &["-kernel", "k", "-chardev", "stdio,id=c,mux=on"];
    fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [SHARED, more].concat()
    }
    let two = options(&words(&["-serial", "chardev:c", "-serial", "chardev:c"]));
    assert_eq!(serial(&two), [Some(&ChardevKind::Stdio { signal: true }); 2]);
    for (more, named) in [
        (&["-serial", "chardev:d"][..], "-serial: there is no -chardev with id=d"),
        (&["-chardev", "null,id=c"], "two with id=c"),
        (&["-serial", "stdio"], "one character device only"),
        (
            &["-chardev", "pty,id=p", "-serial", "chardev:p", "-serial", "chardev:p"],
            "'p' is for 1 device at most (mux",
        ),
        (&["-chardev", "null,id=serial0", "-serial", "pty"], "two with id=serial0"),
    ] {
        let text = refusal(&words(more));
        assert!(text.contains(named), "{text}");
    }
}

#[test]
fn refusals_name_the_thing() {
    assert_eq!(refusal(&["-frobnicate"]), "-frobnicate: unknown option (see -help)");
    assert_eq!(refusal(&["-kernl", "k"]), "-kernl: unknown option (did you mean -kernel? or see -help)");
    assert_eq!(refusal(&["-gdb", "tcp::1"]), "-gdb: not built yet");
    assert!(refusal(&["--vnc", ":1"]).starts_with("--vnc: there are no graphics here"));
    assert!(refusal(&["-usb"]).starts_with("-usb: there is no USB here"));
    assert!(refusal(&["-audio", "alsa"]).starts_with("-audio: there is no sound here"));
    assert_eq!(refusal(&["-kernel"]), "-kernel: needs an argument");
    assert_eq!(refusal(&["disk.img"]), "disk.img: a disk image: not built yet");
    assert!(refusal(&["-vga", "std"]).starts_with("-vga std: there are no graphics here"));
    assert!(refusal(&[]).starts_with("no kernel: give one with -kernel FILE"));
    assert!(
        refusal(&["-kernel", "k", "-serial", "stdio", "-serial", "mon:stdio"])
            .contains("one character device only")
    );
    assert!(refusal(&["-kernel", "k", "-echr", "256"]).starts_with("-echr 256: takes"));
    assert!(refusal(&["-kernel", "k", "-timeout", "0"]).starts_with("-timeout 0: takes"));
    assert!(refusal(&["-kernel", "k", "-display", "gtk"]).starts_with("-display gtk: there are no graphics"));
    let five: Vec<_> = ["-kernel", "k"].into_iter().chain(["-serial", "null"].repeat(5)).collect();
    assert!(refusal(&five).contains("4 serial ports"));
}

#[test]
fn what_is_accepted_and_means_nothing_here() {
    #[rustfmt::skip]
    let words = [
        "-kernel", "k", "-no-user-config", "-boot", "order=c,strict=on", "-overcommit", "mem-lock=off",
        "-sandbox", "off", "-msg", "timestamp=off", "-audiodev", "none,id=a", "-vga", "none", "-L", "/x",
        "-m", "1G,slots=2,maxmem=8G", "-numa", "node,cpus=0", "-global", "virtio-mmio.force-legacy=false",
    ];
    let options = options(&words);
    assert_eq!((options.memory_bytes, options.memory_backend, options.unheard.len()), (1 << 30, None, 0));
}

#[test]
fn globals_reach_devices_before_and_after_them() {
    let global = ["-kernel", "k", "-hda", "x", "-global", "virtio-blk-device.num-queues=3"];
    let more = ["-drive", "file=y,if=none,id=d", "-device", "virtio-blk,drive=d,num-queues=2"];
    let options = options(&[&global[..], &more, &["-global", "qxl.x=1"]].concat());
    let queues = |device: &DeviceChoice| match device {
        DeviceChoice::VirtioBlk(blk) => blk.options.num_queues,
        _ => 0,
    };
    assert_eq!(options.devices.iter().map(queues).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(options.unheard, ["-global qxl.x=1: there is no device 'qxl'; without effect"]);
}

#[test]
fn json_and_files_of_options() {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let text = "[memory]\nsize = \"1G\"\n[drive \"d\"]\nfile=\"x\"\nif = \"none\"\n[name]\nguest=\"a,b\"\n";
    std::fs::write(file.as_path(), text).unwrap();
    let path = file.as_path().to_str().unwrap();
    let device = r#"{"driver":"virtio-blk-device","drive":"d","num-queues":2}"#;
    let options = options(&["-kernel", "k", "-readconfig", path, "-device", device]);
    assert_eq!((options.memory_bytes, options.name.as_deref()), (1 << 30, Some("a,b")));
    assert_eq!((options.drives[0].id.as_str(), options.devices.len()), ("d", 1));
    let refused = |text: &str| {
        std::fs::write(file.as_path(), text).unwrap();
        refusal(&["-readconfig", path])
    };
    let error = refused("[memory]\nsize = \"1k\"\n");
    assert!(error.ends_with("line 1: -m size=1k: guest memory is 1M to 4T"), "{error}");
    assert!(refused("[memry]\n").contains("line 1: unknown group [memry] (did you mean [memory]?)"));
    assert!(refusal(&["-readconfig", "/no/such"]).starts_with("-readconfig /no/such: No such file"));
}

#[test]
fn help_comes_before_what_is_missing() {
    for words in [
        &["-help"][..],
        &["-version"],
        &["-accel", "help"],
        &["-cpu", "?"],
        &["-M", "help"],
        &["-d", "help"],
        &["-chardev", "help"],
        &["-device", "help"],
    ] {
        match line(words).unwrap() {
            Command::Print(text) => assert!(text.ends_with('\n') && text.len() > 20),
            Command::Run(_) => panic!("{words:?} runs"),
        }
    }
}

#[test]
fn every_built_option_is_in_the_help_text() {
    let text = help();
    for row in table::ROWS.iter().filter(|row| matches!(row.kind, Kind::Flag(_) | Kind::Value(_))) {
        let alias = matches!(row.name, "h" | "machine" | "audiodev" | "hdb" | "hdc" | "hdd");
        assert!(alias || text.contains(&format!("-{} ", row.name)), "{}", row.name);
    }
}

//! Whole command lines.

use super::accel::TcgThread;
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
    assert_eq!(options.serial, [SerialBackend::Stdio]);
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
    assert_eq!(options(&["-kernel", "k"]).serial, [SerialBackend::Stdio]);
    assert_eq!(options(&["-kernel", "k", "-nographic"]).serial, [SerialBackend::Stdio]);
    assert_eq!(options(&["-kernel", "k", "-display", "none"]).serial, [SerialBackend::Null]);
    assert_eq!(options(&["-kernel", "k", "-nodefaults"]).serial, []);
    let two = options(&["-kernel", "k", "-nographic", "-serial", "none", "-serial", "stdio"]);
    assert_eq!(two.serial, [SerialBackend::None, SerialBackend::Stdio]);
}

#[test]
fn refusals_name_the_thing() {
    assert_eq!(refusal(&["-frobnicate"]), "-frobnicate: unknown option (see -help)");
    assert_eq!(refusal(&["--vnc", ":1"]), "--vnc: not built yet");
    assert_eq!(refusal(&["-kernel"]), "-kernel: needs an argument");
    assert_eq!(refusal(&["disk.img"]), "disk.img: a disk image: not built yet");
    assert_eq!(refusal(&["-vga", "std"]), "-vga std: not built yet");
    assert!(refusal(&[]).starts_with("no kernel: give one with -kernel FILE"));
    assert!(
        refusal(&["-kernel", "k", "-serial", "stdio", "-serial", "mon:stdio"])
            .contains("one serial port only")
    );
    assert!(refusal(&["-kernel", "k", "-echr", "256"]).starts_with("-echr 256: takes"));
    assert!(refusal(&["-kernel", "k", "-timeout", "0"]).starts_with("-timeout 0: takes"));
    assert!(refusal(&["-kernel", "k", "-display", "gtk"]).ends_with("not built yet"));
    let five: Vec<_> = ["-kernel", "k"].into_iter().chain(["-serial", "null"].repeat(5)).collect();
    assert!(refusal(&five).contains("4 serial ports"));
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
        let alias = matches!(row.name, "h" | "machine" | "hdb" | "hdc" | "hdd");
        assert!(alias || text.contains(&format!("-{} ", row.name)), "{}", row.name);
    }
}

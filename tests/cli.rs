//! Bad input: each is refused in one line that names it, with exit code 1, and nothing is created or truncated.

#[path = "cli/support.rs"]
mod support;

use support::{Refusal, Scratch, refuse};

#[track_caller]
fn refused(words: &[&str], named: &str) {
    let Refusal { stderr, .. } = refuse(words);
    assert!(stderr.contains(named), "{words:?}: {stderr:?} does not name {named:?}");
}

#[test]
fn unknown_option() {
    refused(&["-frobnicate"], "-frobnicate");
    refused(&["--frobnicate=1"], "--frobnicate=1");
}

#[test]
fn option_that_is_not_built() {
    refused(&["-vnc", ":1"], "-vnc: not built yet");
    refused(&["-kernel", "k", "-smp", "2"], "not built yet");
    refused(&["-M", "q35"], "q35");
}

#[test]
fn unknown_property() {
    refused(&["-M", "microvm,frob=1"], "'frob'");
    refused(&["-accel", "kvm,frob=1"], "'frob'");
    refused(&["-accel", "tcg,kernel-irqchip=on"], "'kernel-irqchip'");
    refused(&["-device", "isa-debug-exit,frob=1"], "'frob'");
}

#[test]
fn unknown_cpu_feature() {
    refused(&["-cpu", "max,+frob"], "'frob'");
    refused(&["-cpu", "i960"], "'i960'");
}

#[test]
fn impossible_memory() {
    refused(&["-m", "1k"], "-m 1k");
    refused(&["-m", "99T"], "-m 99T");
}

#[test]
fn a_refused_command_line_leaves_files_alone() {
    let scratch = Scratch::new("cli_files");
    let log = scratch.write("log", b"precious");
    let out = scratch.write("serial", b"precious");
    let pid = scratch.path("pid");
    let kernel = scratch.path("no-such-kernel");
    let serial = format!("file:{}", out.display());
    let words = |kernel: &str| {
        [
            "-kernel",
            kernel,
            "-serial",
            &serial,
            "-D",
            log.to_str().unwrap(),
            "-pidfile",
            pid.to_str().unwrap(),
            "-d",
            "int",
        ]
        .map(str::to_owned)
    };
    let lines = [
        words(kernel.to_str().unwrap()).to_vec(),
        words(kernel.to_str().unwrap()).into_iter().chain(["-frobnicate".to_owned()]).collect(),
    ];
    for words in lines {
        refuse(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(std::fs::read(&log).unwrap(), b"precious");
        assert_eq!(std::fs::read(&out).unwrap(), b"precious");
        assert!(!pid.exists());
    }
}

#[test]
fn help_and_version() {
    for word in ["-help", "--help", "-h", "-version", "--version"] {
        let output = support::bivisor(&[word]);
        assert!(output.status.success());
        assert!(output.stderr.is_empty());
        assert!(String::from_utf8(output.stdout).unwrap().starts_with("bivisor version "));
    }
}

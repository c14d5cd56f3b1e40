//! Bad input: each is refused in one line that names it, with exit code 1, and nothing is created or truncated.

#[path = "cli/support.rs"]
mod support;
#[path = "cli/tiny_guest.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tiny_guest;

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
    refused(&["-vnc", ":1"], "-vnc: there are no graphics here");
    refused(&["-gdb", "tcp::1"], "-gdb: not built yet");
    refused(&["-kernel", "k", "-smp", "2,maxcpus=4"], "maxcpus above cpus): not built yet");
    refused(&["-M", "pc"], "machine 'pc': not built yet");
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
fn counting_that_cannot_be() {
    refused(&["-icount", "shift=11"], "-icount shift=11: shift= takes 0 to 10, or auto");
    refused(&["-icount", "3,sleep=maybe"], "sleep= takes on or off");
    refused(&["-icount", "3,frob=1"], "'frob'");
    let kernel = ["-kernel", "/dev/null"];
    for (accel, named) in
        [("kvm", "KVM cannot count"), ("kvm:tcg", "KVM"), ("tcg,thread=multi", "thread=multi")]
    {
        refused(&[&["-accel", accel, "-icount", "auto"], &kernel[..]].concat(), named);
    }
    refused(&["-rtc", "base=2023-02-29"], "-rtc base=2023-02-29");
}

#[test]
fn networks_that_cannot_be() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let scratch = Scratch::new("cli_networks");
    let kernel = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    let log = scratch.path("log");
    let netdev = format!("user,id=n0,hostfwd=tcp:{taken}-:22");
    let words = ["-netdev", &netdev, "-kernel", kernel.to_str().unwrap(), "-D", log.to_str().unwrap()];
    refused(
        &[&words[..], &["-accel", "tcg"]].concat(),
        &format!("-netdev user,id=n0: hostfwd=tcp:{taken}-10.0.2.15:22: Address already in use"),
    );
    assert!(!log.exists());
    refused(&["-netdev", "user,id=n0,hostfw=tcp::1-:1"], "did you mean 'hostfwd'?");
    refused(&["-netdev", "user,id=n0", "-netdev", "user,id=n0"], "-netdev: there are two with id=n0");
    refused(&["-netdev", "vde,id=n0"], "vde: not built yet");
    refused(&["-netdev", "tap,id=n0,vhostfd=9"], "vhostfd= is for vhost=on");
    for (netdev, named) in [
        ("tap,id=n0,vhost=on,vhostfd=77", "vhost=on: vhostfd=77 is not open"),
        ("tap,id=n0,vhost=on", "vhost=on: /dev/vhost-net: No such file"),
    ] {
        if named.contains("vhostfd") || !std::path::Path::new("/dev/vhost-net").exists() {
            let words = [&["-netdev", netdev, "-accel", "tcg"], &words[2..]].concat();
            refused(&words, &format!("-netdev tap,id=n0: {named}"));
        }
    }
    assert!(!log.exists());
    refused(&["-nic", "user,mac=1"], "mac= takes");
    let kernel = ["-kernel", "/dev/null"];
    refused(&[&["-device", "virtio-net-device,netdev=n9"], &kernel[..]].concat(), "no -netdev with id=n9");
    refused(&[&["-nic", "user", "-icount", "3"], &kernel[..]].concat(), "-icount: what a network brings");
}

#[test]
fn the_other_ends_of_networks() {
    let scratch = Scratch::new("cli_network_ends");
    let kernel = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    let log = scratch.path("log");
    let [absent, file] = ["absent", "file"].map(|name| scratch.path(name).display().to_string());
    scratch.write("file", b"in the way");
    for (netdev, named) in [
        (
            format!("stream,id=n0,addr.type=unix,addr.path={absent}"),
            format!("cannot connect to {absent}: No such file"),
        ),
        (
            format!("stream,id=n0,server=on,addr.type=unix,addr.path={file}"),
            format!("cannot listen on {file}: Address"),
        ),
        (
            format!("dgram,id=n0,local.type=unix,local.path={file},remote.type=unix,remote.path={absent}"),
            format!("no socket on {file}: Address already in use"),
        ),
        ("stream,id=n0,addr.type=fd,addr.str=987".into(), "descriptor 987 is not open: Bad file".into()),
        ("tap,id=n0,fd=987".into(), "descriptor 987 is not open: Bad file".into()),
        // An interface of the host that is no tap; without the right to have one, that is what it says.
        ("tap,id=n0,ifname=lo,script=no".into(), "-netdev tap,id=n0: ".into()),
    ] {
        #[rustfmt::skip]
        let words = ["-accel", "tcg", "-netdev", &netdev, "-kernel", kernel.to_str().unwrap(), "-D", log.to_str().unwrap()];
        refused(&words, &named);
        assert!(!log.exists(), "{netdev}");
    }
    assert_eq!(std::fs::read(scratch.path("file")).unwrap(), b"in the way");
}

#[test]
fn impossible_memory() {
    refused(&["-m", "1k"], "-m 1k");
    refused(&["-m", "99T"], "-m 99T");
}

#[test]
fn kernels_that_are_none() {
    let scratch = Scratch::new("cli_kernels");
    let absent = scratch.path("absent");
    let text = scratch.write("text", b"#!/bin/sh\necho no kernel\n");
    // A bzImage's header, and nothing after it.
    let mut header = vec![0; 0x300];
    header[..2].copy_from_slice(b"MZ");
    header[0x1f1] = 4;
    header[0x1f5] = 0xff;
    header[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    header[0x211] = 1;
    header[0x236] = 1;
    let truncated = scratch.write("truncated", &header);
    for (kernel, complaint) in [(absent, "no such file"), (text, "a text file"), (truncated, "truncated")] {
        let kernel = kernel.to_str().unwrap();
        let Refusal { stderr, .. } = refuse(&["-kernel", kernel]);
        assert!(stderr.contains(&format!("-kernel {kernel}: ")) && stderr.contains(complaint), "{stderr}");
    }
}

#[test]
fn an_initrd_larger_than_memory() {
    let scratch = Scratch::new("cli_initrd");
    let kernel = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    let initrd = scratch.write("initrd", b"");
    std::fs::File::options().write(true).open(&initrd).unwrap().set_len(1 << 30).unwrap();
    let words = ["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap(), "-m", "64"];
    refused(&words, &format!("-initrd {}: 1073741824 bytes do not fit", initrd.display()));
}

#[test]
fn a_kvm_that_cannot_be_had() {
    let scratch = Scratch::new("cli_kvm");
    let kernel = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    for (device, complaint) in [("/no/such/kvm", "absent"), ("/dev/null", "not a KVM device"), ("/", "/")] {
        let accel = format!("kvm,device={device}");
        let Refusal { stderr, .. } = refuse(&["-accel", &accel, "-kernel", kernel.to_str().unwrap()]);
        assert!(stderr.starts_with("bivisor: -accel kvm: ") && stderr.contains(complaint), "{stderr}");
    }
}

#[test]
fn a_refusal_takes_no_time() {
    let scratch = Scratch::new("cli_time");
    let kernel = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    let text = scratch.write("text", b"no kernel\n");
    let initrd = scratch.write("initrd", b"");
    std::fs::File::options().write(true).open(&initrd).unwrap().set_len(1 << 30).unwrap();
    let [kernel, text, initrd] = [&kernel, &text, &initrd].map(|path| path.to_str().unwrap());
    let lines: [&[&str]; 11] = [
        &["-frobnicate"],
        &["-kernel", "/no/such/kernel"],
        &["-kernel", text],
        &["-kernel", kernel, "-initrd", initrd, "-m", "64"],
        &["-m", "1k"],
        &["-m", "99T"],
        &["-M", "microvm,frob=1"],
        &["-cpu", "max,+frob"],
        &["-kernel", kernel, "-accel", "kvm,device=/no/such/kvm"],
        &["-kernel", kernel, "-accel", "kvm,device=/dev/null"],
        &["-kernel", kernel, "-accel", "kvm,device=/"],
    ];
    for words in lines {
        // The best of a few: a busy host is not the program's fault.
        let best = (0..20).map(|_| {
            let begun = std::time::Instant::now();
            refuse(words);
            begun.elapsed()
        });
        assert!(best.min().unwrap() < std::time::Duration::from_millis(100), "{words:?}");
    }
}

#[test]
fn a_refused_command_line_leaves_files_alone() {
    let scratch = Scratch::new("cli_files");
    let log = scratch.write("log", b"precious");
    let out = scratch.write("serial", b"precious");
    let pid = scratch.path("pid");
    let kernel = scratch.path("no-such-kernel");
    let good = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    let no_engine = ["-accel", "kvm,device=/no/such/kvm"].map(str::to_owned);
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
        words(good.to_str().unwrap()).into_iter().chain(no_engine).collect(),
        words(good.to_str().unwrap())
            .into_iter()
            .chain(["-accel", "tcg", "-serial", "file:/no/such/folder/serial"].map(str::to_owned))
            .collect(),
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

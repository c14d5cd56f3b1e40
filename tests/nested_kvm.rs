//! Whole machine, nested: in an emulated host with SVM, `bivisor -accel kvm` boots Debian's kernel
//! (`resources/design/0001-nested-kvm.md`).

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::guests::{fetch, installed, micro_kernels, path, script};
use harness::log::complaints;
use harness::session::{Outcome, Session, bivisor};

const LIMIT: Duration = Duration::from_secs(1200);

/// L1 ends each command after 600 seconds and says so. When it is silent for longer, it is the emulator that hangs.
const L1_SILENCE: Duration = Duration::from_secs(660);

/// The emulated host's, seen with other VMMs too: its CPUID gives sizes of XSAVE areas that do not add up.
const KNOWN_WARNINGS: &[&str] = &["XSAVE consistency problem"];

/// What Linux says on several CPUs of AMD's without an invariant TSC, which is hidden unless asked for.
const NO_INVARIANT_TSC: &str = "Marking TSC unstable due to TSCs unsynchronized";

/// Boots L1 with an image that holds these files (in /files) and runs these commands; None if the test was skipped.
fn run_in_l1(test: &str, files: &[&Path], commands: &[String]) -> Option<Outcome> {
    run_in_l1_with(test, &[], files, commands)
}

/// The same, with more for `nested.sh`: modules, programs.
fn run_in_l1_with(test: &str, more: &[&str], files: &[&Path], commands: &[String]) -> Option<Outcome> {
    if !fetch(test, &["cloud", "boot-test"]) || !installed(test, "qemu-system-x86_64") {
        return None;
    }
    let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}.gz", std::process::id()));
    let image = image.to_str().expect("the target folder's name is text").to_owned();
    let program = bivisor();
    let mut arguments = vec![image.as_str(), "--program", &program];
    arguments.extend(more);
    for file in files {
        arguments.extend(["--file", file.to_str().expect("the path is text")]);
    }
    for command in commands {
        arguments.extend(["--run", command]);
    }
    if !script(test, "nested.sh", &arguments) {
        return None;
    }
    let kernel = path("vmlinuz-cloud");
    // q35 has a HPET and a PM timer: without them a busy host's L1 can fail to calibrate its TSC.
    #[rustfmt::skip]
    let words = [
        "-M", "q35", "-accel", "tcg", "-cpu", "max,+svm", "-smp", "1", "-m", "2048", "-nic", "none",
        "-nographic", "-no-reboot", "-kernel", &kernel, "-initrd", &image,
        "-append", "console=ttyS0 reboot=t panic=-1 quiet",
    ];
    let mut outcome = None;
    for _ in 0..3 {
        outcome = Session::start("qemu-system-x86_64", &words, LIMIT).finish_unless_silent(L1_SILENCE);
        if outcome.is_some() {
            break;
        }
        println!("{test}: the emulated host hangs; started anew");
    }
    let _ = std::fs::remove_file(&image);
    let outcome = outcome.expect("the emulated host does not hang three times in a row");
    outcome.check(outcome.serial.contains("\nBIVISOR-L1-KVM\n"), "L1 has no /dev/kvm");
    outcome.check(outcome.serial.contains("\nBIVISOR-L1-DONE\n"), "L1 did not come to its end");
    Some(outcome)
}

/// What the n-th command (from 1) printed, and its exit status.
#[track_caller]
fn part(outcome: &Outcome, n: usize) -> (&str, &str) {
    let begin = format!("BIVISOR-RUN-BEGIN {n}: ");
    let end = format!("BIVISOR-RUN-END {n}: status=");
    let part = outcome.serial.split_once(&begin).and_then(|(_, after)| {
        let (_, after) = after.split_once('\n')?;
        let (printed, after) = after.split_once(&end)?;
        Some((printed, after.lines().next()?))
    });
    outcome.check(part.is_some(), &format!("run {n} has no begin or no end"));
    part.expect("checked just before")
}

/// The program's name in L1.
fn program() -> String {
    Path::new(&bivisor()).file_name().expect("a program has a name").to_string_lossy().into_owned()
}

/// The command that boots Linux in L1, with more on its kernel's command line.
fn linux(accel: &str, options: &str, append: &str) -> String {
    let name = program();
    format!(
        "{name} -accel {accel} -M microvm -m 256 -kernel /guests/vmlinuz-cloud -initrd /guests/boot-test.gz \
         -append 'console=ttyS0 panic=-1 {append}' -nographic {options}"
    )
}

/// The guest ran on KVM and its log is clean.
#[track_caller]
fn ran_well(outcome: &Outcome, what: &str, printed: &str) {
    outcome.check(printed.contains("BIVISOR-INIT-OK\n"), &format!("{what}: init did not run"));
    let detected = printed.contains("Hypervisor detected: KVM");
    outcome.check(detected, &format!("{what}: the guest did not run on KVM"));
    let mut complaints = complaints(printed, KNOWN_WARNINGS);
    complaints.retain(|line| !line.contains(NO_INVARIANT_TSC));
    outcome.check(complaints.is_empty(), &format!("{what}: the log complains: {complaints:#?}"));
}

#[track_caller]
fn powered_off(outcome: &Outcome, what: &str, (printed, status): (&str, &str)) {
    outcome.check(status == "0", &format!("{what}: exit code {status}"));
    outcome.check(printed.contains("reboot: Power down"), &format!("{what}: no power-off"));
    ran_well(outcome, what, printed);
}

#[test]
fn linux_boots_under_kvm() {
    // The last is what a user without options gets: it must find that KVM works there.
    let accels = ["kvm", "kvm,kernel-irqchip=off", "kvm:tcg"];
    let commands = accels.map(|accel| linux(accel, "-no-reboot", ""));
    let Some(outcome) = run_in_l1("linux_boots_under_kvm", &[], &commands) else { return };
    for (n, accel) in accels.iter().enumerate() {
        powered_off(&outcome, &format!("-accel {accel}"), part(&outcome, n + 1));
    }
    println!("nested: {:.1} s", outcome.elapsed.as_secs_f64());
}

#[test]
fn linux_boots_on_several_cpus_under_kvm() {
    let machines = [
        ("kvm", 2, "cpu_toggles=2", "BIVISOR-TOGGLED 2\n"),
        ("kvm,kernel-irqchip=off", 2, "cpu_toggles=2", "BIVISOR-TOGGLED 2\n"),
        ("kvm", 4, "", ""),
    ];
    let mut commands: Vec<String> = machines
        .iter()
        .map(|(accel, cpus, append, _)| linux(accel, &format!("-no-reboot -smp {cpus}"), append))
        .collect();
    // A guest that reboots for ever, ended by a signal after its second start.
    let machine = linux("kvm", "-smp 2", "end=reboot");
    commands.push(format!(
        "{machine} >/tmp/log & until [ $(grep -c '^cpu1: ' /tmp/log) -ge 2 ]; do sleep 1; done; kill $!; cat /tmp/log"
    ));
    let Some(outcome) = run_in_l1("linux_boots_on_several_cpus_under_kvm", &[], &commands) else { return };
    for (n, (accel, cpus, _, said)) in machines.into_iter().enumerate() {
        let what = format!("-accel {accel} -smp {cpus}");
        let (printed, status) = part(&outcome, n + 1);
        powered_off(&outcome, &what, (printed, status));
        let online = format!("cpus: {cpus}, online 0-{}\n", cpus - 1);
        outcome.check(printed.contains(&online), &format!("{what}: not all CPUs are there"));
        outcome.check(printed.contains(said), &format!("{what}: CPUs did not go off line and come back"));
    }
    let (printed, status) = part(&outcome, machines.len() + 1);
    outcome.check(status == "0", &format!("rebooting: exit code {status}"));
    ran_well(&outcome, "rebooting", printed);
    let starts = printed.matches("cpus: 2, online 0-1\n").count();
    outcome.check(starts >= 2, &format!("only {starts} starts with both CPUs"));
    println!("nested, several CPUs: {:.1} s", outcome.elapsed.as_secs_f64());
}

/// The micro-kernel, on a KVM that does not emulate: with as many CPUs as there may be, and reset with its CPUs in use. The emulated
/// host forgets the shadow of STI when it leaves the guest within it, so that an interrupt may come before HLT and be slept
/// over (`resources/design/0001-nested-kvm.md`). The kernel is told: it does not count on the shadow, and says how often it was lost.
#[test]
fn many_cpus_under_nested_kvm() {
    let kernel = micro_kernels().join("smp");
    let machines = [(4, "on", 2), (4, "off", 2), (64, "on", 0), (64, "off", 0)];
    let commands = machines.map(|(cpus, irqchip, resets)| {
        format!(
            "{} -accel kvm,kernel-irqchip={irqchip} -smp {cpus} -M microvm -m 128 -kernel /files/smp -nographic \
             -device isa-debug-exit,iobase=0xf4,iosize=4 -timeout 400 -append 'verbose cpus={cpus} resets={resets} no-sti-shadow'",
            program()
        )
    });
    let Some(outcome) = run_in_l1("many_cpus_under_nested_kvm", &[&kernel], &commands) else { return };
    for (n, (cpus, irqchip, _)) in machines.into_iter().enumerate() {
        let (printed, status) = part(&outcome, n + 1);
        let holds = status == "33" && printed.contains("all claims hold\n") && !printed.contains("FAILED");
        outcome.check(holds, &format!("{cpus} CPUs, kernel-irqchip={irqchip}: status {status}\n{printed}"));
        for line in printed.lines().filter(|line| line.starts_with("interrupts between STI and HLT: ")) {
            println!("{cpus} CPUs, kernel-irqchip={irqchip}: {line}");
        }
    }
    println!("nested, many CPUs: {:.1} s", outcome.elapsed.as_secs_f64());
}

/// A disk, whose doorbell the kernel rings (`ioeventfd`), under the kernel's interrupt controllers and under ours; and one on PCI,
/// whose interrupts are messages that the kernel delivers (`irqfd`).
#[test]
fn linux_uses_a_disk_under_kvm() {
    let test = "linux_uses_a_disk_under_kvm";
    if !fetch(test, &["cloud", "disk", "pci"]) {
        return;
    }
    let (image, initrd, on_pci) = (path("disk.ext4"), path("disk.gz"), path("pci.gz"));
    let machines = [("kvm", 1, 1), ("kvm,kernel-irqchip=off", 2, 2)];
    let command = |machine: &str, initrd: &str, device: &str, jobs: &str| {
        format!(
            "{} {machine} -m 256 -kernel /guests/vmlinuz-cloud -initrd /files/{initrd} -nographic \
             -drive file=/files/disk.ext4,format=raw,if=none,id=d -device {device},drive=d \
             -append 'console=ttyS0 panic=-1 jobs={jobs}'",
            program()
        )
    };
    let mut commands = Vec::from(machines.map(|(accel, cpus, queues)| {
        let machine = format!("-accel {accel} -M microvm -smp {cpus}");
        command(&machine, "disk.gz", &format!("virtio-blk-device,num-queues={queues}"), "write,run")
    }));
    let device = "virtio-rng-pci -device virtio-blk-pci,num-queues=2";
    commands.push(command("-accel kvm -M q35 -smp 2", "pci.gz", device, "functions,disk,rng,interrupts"));
    let files = [Path::new(&image), Path::new(&initrd), Path::new(&on_pci)];
    let Some(outcome) = run_in_l1(test, &files, &commands) else { return };
    for (n, (accel, ..)) in machines.into_iter().enumerate() {
        let (printed, status) = part(&outcome, n + 1);
        let well = status == "0"
            && printed.contains("found the data of the time before\n")
            && printed.contains("\nran 36 programs\n");
        outcome.check(well, &format!("-accel {accel}: status {status}\n{printed}"));
    }
    let (printed, status) = part(&outcome, machines.len() + 1);
    let on_pci = [
        "BIVISOR-PCI-END disk status=0",
        "BIVISOR-PCI-END rng status=0",
        "interrupt virtio1-req.0: PCI-MSI has come",
        "interrupt virtio1-req.1: PCI-MSI has come",
    ];
    let well = status == "0" && on_pci.iter().all(|line| printed.lines().any(|said| said == *line));
    outcome.check(well, &format!("-M q35: status {status}\n{printed}"));
    println!("nested, a disk: {:.1} s", outcome.elapsed.as_secs_f64());
}

/// What follows `text` in the lines that begin so.
fn said<'a>(printed: &'a str, text: &str) -> Vec<&'a str> {
    printed.lines().filter_map(|line| line.trim_end().strip_prefix(text)).collect()
}

/// Whether machines are run that cost minutes and show little that the others do not.
fn in_full() -> bool {
    std::env::var_os("BIVISOR_VHOST_FULL").is_some()
}

/// A card on a tap interface and streams, both served by L1's kernel (vhost). The card is on PCI, where the kernel's calls are messages
/// (`irqfd`), the streams on virtio-mmio, where they are not; the guest reboots. In full: the other way round, and translated, on
/// shadow rings.
#[test]
fn vhost_of_the_kernel_under_nested_kvm() {
    let test = "vhost_of_the_kernel_under_nested_kvm";
    if !fetch(test, &["cloud", "vhost"]) {
        return;
    }
    let (initrd, vsock) = (path("vhost.gz"), path("vhost/vsock"));
    let host = harness::guests::root().join("resources/guests/vhost");
    let mut machines = vec![("-accel kvm -M microvm,pcie=on", "net-pci", "vsock-device", 2)];
    if in_full() {
        machines.extend([
            ("-accel kvm,kernel-irqchip=off -M q35 -smp 2", "net-pci", "vsock-pci", 1),
            ("-accel kvm -M microvm,pcie=on", "net-device", "vsock-pci,vectors=0", 2),
            ("-accel tcg -M microvm,pcie=on", "net-pci", "vsock-device", 2),
        ]);
    }
    const MEGABYTES: usize = 1;
    let command = |&(machine, card, streams, starts): &(&str, &str, &str, usize)| {
        format!(
            "sh /files/vhost/host {starts} {MEGABYTES} {} {machine} -m 256 -kernel /guests/vmlinuz-cloud \
             -initrd /files/vhost.gz -nographic -netdev tap,id=n,vhost=on,script=/files/vhost/host,downscript=no \
             -device virtio-{card},netdev=n -device vhost-{streams},guest-cid=42 \
             -append 'console=ttyS0 panic=-1 megabytes={MEGABYTES}'",
            program()
        )
    };
    let commands: Vec<String> = machines.iter().map(command).collect();
    let more = ["--module", "tun", "--module", "vhost_net", "--module", "vhost_vsock", "--program", &vsock];
    let files = [host.as_path(), Path::new(&initrd)];
    let Some(outcome) = run_in_l1_with(test, &more, &files, &commands) else { return };
    for (n, (machine, card, streams, starts)) in machines.into_iter().enumerate() {
        let (printed, status) = part(&outcome, n + 1);
        let check = |what: bool, why: &str| {
            let which = format!("{machine} {card} {streams}: status {status}");
            outcome.check(what, &format!("{which}: {why}\n{printed}"));
        };
        check(status == "0", "no good end");
        check(said(printed, "BIVISOR-VHOST-END status=") == vec!["0"; starts], "the guest's end");
        let (sum, guests) = (said(printed, "sum of the host's: "), said(printed, "sum of the guest's: "));
        check(sum.len() == 1 && guests.len() == starts, "what was to be sent");
        for way in ["from the card: ", "from a stream: ", "from packets: ", "from a client: "] {
            check(said(printed, way) == vec![sum[0]; starts], way);
        }
        for way in ["to the card: ", "to a stream: ", "to packets: ", "to the guest's port: "] {
            check(said(printed, way) == guests, way);
        }
        check(said(printed, "vhost worker: ") == vec!["has worked"; 2 * starts], "the kernel's threads");
        if card == "net-pci" && machine.starts_with("-accel kvm ") {
            // The kernel's calls are interrupts, and wake no thread of ours. Elsewhere a megabyte wakes them some hundred times.
            let woken = said(printed, "thread of the card: woken ");
            let often =
                |text: &&str| text.split(' ').next().is_none_or(|n| n.parse().is_ok_and(|n: u64| n > 30));
            check(!woken.is_empty() && !woken.iter().any(often), "threads of ours");
        }
        if card == "net-pci" {
            let came = said(printed, "interrupt ");
            for queue in ["-input.0", "-output.0"] {
                let is_it = |line: &&&str| line.contains(queue) && line.ends_with(": PCI-MSI has come");
                check(came.iter().filter(is_it).count() == starts, queue);
            }
        }
    }
    println!("nested, vhost: {:.1} s", outcome.elapsed.as_secs_f64());
}

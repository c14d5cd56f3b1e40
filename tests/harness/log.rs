//! The judge of a guest kernel's log, after `resources/guests/bad-log-lines`.

/// What a clean log never holds; shared with the soak script.
const BAD: &str = include_str!("../../resources/guests/bad-log-lines");

/// The lines of a log that tell of trouble. A kernel warning (from its cut-here line to its end of trace) that
/// holds one of the `known` texts is passed over: a fault of the machine around, named by whoever passes it.
pub fn complaints(log: &str, known: &[&str]) -> Vec<String> {
    let bad: Vec<&str> = BAD.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let lines: Vec<&str> = log.lines().map(str::trim_end).collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        if let Some(end) = known_warning(&lines[at..], known) {
            at += end + 1;
            continue;
        }
        if bad.iter().any(|text| lines[at].contains(text)) {
            found.push(lines[at].to_owned());
        }
        at += 1;
    }
    found
}

/// If the lines open with a warning that holds a known text: the index of its last line.
fn known_warning(lines: &[&str], known: &[&str]) -> Option<usize> {
    if !lines[0].contains("[ cut here ]") {
        return None;
    }
    let end = lines.iter().position(|line| line.contains("---[ end trace"))?;
    // A warning inside this one would be hidden with it.
    let nested = lines[1..end].iter().any(|line| line.contains("[ cut here ]"));
    let is_known = lines[..end].iter().any(|line| known.iter().any(|text| line.contains(text)));
    (is_known && !nested).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::complaints;

    const CLEAN: &str = "\
[    0.000000] Linux version 6.1.0-56-cloud-amd64\r
[    0.000000] tsc: Detected 2596.121 MHz processor\r
[    0.435902] clocksource: Switched to clocksource tsc-early\r
[    1.213618] x86/mm: Checked W+X mappings: passed, no W+X pages found.\r
[    1.213949] Run /init as init process\r
";

    const WARNING: &str = "\
[    1.8] ------------[ cut here ]------------
[    1.8] XSAVE consistency problem: size 2696 != kernel_size 576
[    1.8] WARNING: CPU: 0 PID: 0 at arch/x86/kernel/fpu/xstate.c:606
[    1.8] Call Trace:
[    1.8] ---[ end trace 0000000000000000 ]---
";

    #[test]
    fn clean_log_has_no_complaints() {
        assert_eq!(complaints(CLEAN, &[]), Vec::<String>::new());
    }

    #[test]
    fn each_trouble_is_found() {
        for line in [
            "[    4.0] BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "[    4.0] Oops: 0000 [#1] PREEMPT SMP NOPTI",
            "[   30.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [swapper/0:1]",
            "[   25.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[    2.2] tsc: Marking TSC unstable due to clocksource watchdog",
            "[    2.2] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable",
            "[   11.2] smpboot: do_boot_cpu failed(-1) to wakeup CPU#1",
            "[    0.1] tsc: Unable to calibrate against PIT",
            "[    0.1] Kernel panic - not syncing: IO-APIC + timer doesn't work!",
            "[    0.3] ..MP-BIOS bug: 8254 timer not connected to IO-APIC",
            "[    0.2] unchecked MSR access error: RDMSR from 0x1a0",
            "[    3.1] traps: init[1] trap invalid opcode ip:401000 sp:7ffc error:0",
            "[    5.0] sh[12]: segfault at 0 ip 0000000000401000",
            "[    9.0] irq 4: nobody cared (try booting with the \"irqpoll\" option)",
        ] {
            let log = format!("{CLEAN}{line}\r\n{CLEAN}");
            assert_eq!(complaints(&log, &[]), [line]);
        }
    }

    #[test]
    fn a_known_warning_hides_itself_and_nothing_else() {
        assert_eq!(complaints(WARNING, &[]).len(), 4);
        let log = format!("{CLEAN}{WARNING}[    2.0] Oops: 0000 [#1]\n");
        assert_eq!(complaints(&log, &["XSAVE consistency"]), ["[    2.0] Oops: 0000 [#1]"]);
        assert_eq!(complaints(&log, &["another text"]).len(), 5);
    }

    #[test]
    fn a_known_warning_without_an_end_is_no_excuse() {
        let cut = WARNING.lines().take(4).collect::<Vec<_>>().join("\n");
        assert_eq!(complaints(&cut, &["XSAVE consistency"]).len(), 4);
    }
}

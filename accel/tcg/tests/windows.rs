//! Windows: user code that reaches memory at its own addresses sees what the guest's page tables say, and nothing else that lies
//! there in this process.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use accel::CpuHandle;
use accel::arch_state::{CpuArchState, RunMode, SegmentState, TableState, seg};
use accel::contract::{Accelerator, NoIo, VcpuBackend, VcpuConfig, VcpuExit};
use accel::cpu_model::CpuModel;
use accel_tcg::windows::{self, Backing, Claim, Opening};
use accel_tcg::{Tcg, TcgOptions};
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Assembler = VecAssembler<X64Relocation>;

const MEMORY: u64 = 32 << 20;
/// User code, linear = physical.
const CODE: u64 = 0x10_0000;
/// Where user code leaves results.
const RESULT: u64 = 0x20_0000;
/// Where the kernel notes an exception: vector, error code, CR2.
const NOTE: u64 = 0x21_0000;
const STACK: u64 = 0x30_0000;
/// Pages for tests to map.
const PAGES: u64 = 0x100_0000;
/// The kernel: its code, its tables, its stack.
const KERNEL: u64 = 0x8000;
const IDT: u64 = 0xa000;
const TASK: u64 = 0xb000;
const KERNEL_STACK: u64 = 0xf000;
const TABLES: u64 = 0x40_0000;
/// Bytes of the tables of one address space.
const SPACE: u64 = 0x20_0000;
/// Where programs have pages as a rule: heap and stack of a Linux process.
const HEAP: u64 = 0x5555_6666_7000;

/// Present, writable, for the user, accessed, dirty.
const ALL: u64 = 0x67;
const READ_ONLY: u64 = 0x25;

/// What user code asks of the kernel, in RAX.
const END: i32 = 0;
/// The word at RDI = RSI, then INVLPG of RDX.
const REMAP: i32 = 1;
/// CR3 = RDI.
const SWITCH: i32 = 2;

struct Guest {
    backend: Box<dyn VcpuBackend>,
    memory: GuestMemoryMmap<()>,
    next_table: u64,
    accelerator: Tcg,
}

fn segment(selector: u16, access: u16) -> SegmentState {
    SegmentState { selector, base: 0, limit: u32::MAX, access }
}

fn assemble(write: impl FnOnce(&mut Assembler)) -> Vec<u8> {
    let mut e = Assembler::new(0);
    write(&mut e);
    e.finalize().expect("labels are bound")
}

/// The kernel: SYSCALL's target at [`KERNEL`], handlers of #GP and #PF behind it.
fn kernel() -> [(u64, Vec<u8>); 3] {
    let calls = assemble(|e| {
        dynasm!(e ; .arch x64
            ; cmp eax, REMAP
            ; jb >end
            ; ja >switch
            ; mov [rdi], rsi
            ; invlpg [rdx]
            ; .bytes [0x48, 0x0f, 0x07] // sysretq
            ; switch:
            ; mov cr3, rdi
            ; .bytes [0x48, 0x0f, 0x07] // sysretq
            ; end:
            ; hlt);
    });
    let handler = |vector: i32| {
        assemble(|e| {
            dynasm!(e ; .arch x64
                ; mov DWORD [NOTE as i32], vector
                ; mov DWORD [NOTE as i32 + 4], 0
                ; pop rax
                ; mov [NOTE as i32 + 8], rax
                ; mov rax, cr2
                ; mov [NOTE as i32 + 16], rax
                ; hlt);
        })
    };
    [(KERNEL, calls), (KERNEL + 0x100, handler(13)), (KERNEL + 0x200, handler(14))]
}

/// A file of [`MEMORY`] zeros.
fn memory() -> File {
    // SAFETY: the name is a string of C, and the descriptor is a new one.
    #[expect(unsafe_code, reason = "memfd_create is C")]
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"windows".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(MEMORY).expect("room in memory");
    file
}

impl Guest {
    fn new(stress: &str) -> Self {
        let file = memory();
        let ranges = [(GuestAddress(0), MEMORY as usize, Some(FileOffset::new(file, 0)))];
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).expect("memory");
        let accelerator = Tcg::new(TcgOptions {
            code_bytes: 16 << 20,
            stress: stress.parse().expect("a stress"),
            ..TcgOptions::default()
        });
        let accelerator = accelerator.expect("a translator");
        accelerator.memory_listener().set_map(&memory).expect("a map");
        let config = VcpuConfig { index: 0, apic_id: 0, cpu_count: 1, model: CpuModel::default().into() };
        let seed = accelerator.new_vcpu(&config).expect("a CPU");
        let backend = seed.bind(CpuHandle::new(0)).expect("a CPU binds");
        let mut guest = Self { backend, memory, next_table: 0, accelerator };
        for (at, code) in kernel() {
            guest.memory.write_slice(&code, GuestAddress(at)).expect("in memory");
        }
        for (vector, handler) in [(13, KERNEL + 0x100), (14, KERNEL + 0x200)] {
            guest.put(IDT + 16 * vector, handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | handler >> 16 << 48);
        }
        guest.put(TASK + 4, KERNEL_STACK);
        for space in 0..2 {
            guest.next_table = TABLES + space * SPACE + 0x1000;
            for page in 0..MEMORY >> 12 {
                guest.map_in(space, page << 12, page << 12, ALL);
            }
        }
        guest
    }

    fn put(&self, at: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(at)).expect("in memory");
    }

    fn word(&self, at: u64) -> u64 {
        self.memory.read_obj(GuestAddress(at)).expect("in memory")
    }

    /// The address of the last-level entry for `linear` in address space `space`; tables are made as needed.
    fn entry(&mut self, space: u64, linear: u64) -> u64 {
        let mut table = TABLES + space * SPACE;
        for shift in [39, 30, 21] {
            let at = table + 8 * (linear >> shift & 511);
            if self.word(at) == 0 {
                self.put(at, self.next_table | ALL);
                self.next_table += 0x1000;
            }
            table = self.word(at) & !0xfff;
        }
        table + 8 * (linear >> 12 & 511)
    }

    fn map_in(&mut self, space: u64, linear: u64, physical: u64, rights: u64) {
        let at = self.entry(space, linear);
        self.put(at, physical | rights);
    }

    fn map(&mut self, linear: u64, physical: u64) {
        self.map_in(0, linear, physical, ALL);
    }

    /// Runs user code until it asks for the end, or has an exception: then its vector, error code and CR2.
    fn run(&mut self, write: impl FnOnce(&mut Assembler)) -> Option<[u64; 3]> {
        let code = assemble(|e| {
            write(e);
            dynasm!(e ; .arch x64 ; mov eax, END ; syscall);
        });
        self.memory.write_slice(&code, GuestAddress(CODE)).expect("in memory");
        // What was translated of the code before is void.
        self.accelerator.dma_observer().expect("a translator").written(CODE, code.len() as u64);
        self.put(NOTE, 0);
        let mut state = CpuArchState::power_on();
        state.segments = [segment(0x2b, 0xc0f3); 6];
        state.segments[seg::CS] = segment(0x33, 0xa0fb);
        state.task = SegmentState { selector: 0x40, base: TASK, limit: 0x67, access: 0x8b };
        state.idt = TableState { base: IDT, limit: 0xfff };
        state.gdt = TableState { base: GDT, limit: 0x3f };
        for (at, access) in [(0x10, 0xa09b), (0x18, 0xc093), (0x28, 0xc0f3), (0x30, 0xa0fb_u64)] {
            self.put(GDT + at, 0x000f_0000_0000_ffff | (access & 0xff) << 40 | access >> 12 << 52);
        }
        (state.rip, state.gpr[4]) = (CODE, STACK);
        // PE MP ET NE WP PG; PAE OSFXSR OSXMMEXCPT; SCE LME LMA NXE.
        (state.cr0, state.cr3, state.cr4, state.efer) = (0x8001_0033, TABLES, 0x620, 0xd01);
        state.msrs = vec![(STAR, 0x20 << 48 | 0x10 << 32), (LSTAR, KERNEL)];
        state.run_mode = RunMode::Running;
        self.backend.set_state(&state).expect("the state is good");
        let exit = self.backend.run(&NoIo).expect("it runs");
        assert_eq!(exit, VcpuExit::Halted, "at {:#x}", self.backend.state().expect("a state").rip);
        (self.word(NOTE) != 0).then(|| [self.word(NOTE), self.word(NOTE + 8), self.word(NOTE + 16)])
    }
}

const GDT: u64 = 0xc000;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

/// One after the other: windows are the process's.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn each(test: impl Fn(&mut Guest)) {
    let _alone = alone();
    let stresses = [
        "windows",
        "windows+kicks",
        "windows+one-instruction",
        "windows+reclaims",
        "windows+shifts",
        "windows+shifts+one-instruction",
        "short",
    ];
    for stress in stresses {
        test(&mut Guest::new(stress));
    }
}

#[test]
fn a_program_reaches_its_pages_where_it_has_them() {
    let before = windows::opened();
    each(|guest| {
        guest.map(HEAP, PAGES);
        guest.map(HEAP + 0x1000, PAGES + 0x5000);
        guest.put(PAGES + 0xff8, 0x1111_2222_3333_4444);
        guest.put(PAGES + 0x5000, 0x5555_6666_7777_8888);
        let fault = guest.run(|e| {
            dynasm!(e ; .arch x64
                ; mov rbx, QWORD HEAP as i64
                // On both pages, which do not follow each other in RAM.
                ; mov rax, [rbx + 0xffc]
                ; mov [RESULT as i32], rax
                ; mov rcx, QWORD -2
                ; mov [rbx + rcx * 4 + 0x1000], ecx
                ; lock add QWORD [rbx + 0x1010], 7
                ; mov r10, rbx
                ; push QWORD [r10 + 0x1010]
                ; pop QWORD [r10 + 0x18]
                ; mov rsp, rbx
                ; lea rsp, [rsp + 0x800]
                ; call >there
                ; there:
                ; pop r9
                ; mov [RESULT as i32 + 8], r9);
        });
        assert_eq!(fault, None);
        assert_eq!(guest.word(RESULT), 0x7777_8888_1111_2222);
        assert_eq!(guest.word(PAGES + 0xff8), 0x1111_2222_ffff_fffe);
        assert_eq!(guest.word(PAGES + 0x5010), 7);
        assert_eq!(guest.word(PAGES + 0x18), 7);
        assert_eq!(guest.word(RESULT + 8), guest.word(PAGES + 0x7f8), "a return address");
    });
    if std::arch::is_x86_feature_detected!("bmi2") {
        assert!(windows::opened() > before, "windows were opened");
    } else {
        eprintln!(
            "a_program_reaches_its_pages_where_it_has_them: skipped in part: no windows on a host without BMI2"
        );
    }
}

#[test]
fn what_is_mapped_anew_is_seen_anew() {
    each(|guest| {
        guest.map(HEAP, PAGES);
        guest.put(PAGES, 1);
        guest.put(PAGES + 0x3000, 2);
        let entry = guest.entry(0, HEAP);
        let fault = guest.run(|e| {
            dynasm!(e ; .arch x64
                ; mov rdx, QWORD HEAP as i64
                ; mov r8, [rdx]
                ; mov edi, entry as i32
                ; mov esi, ((PAGES + 0x3000) | ALL) as i32
                ; mov eax, REMAP
                ; syscall
                ; mov r9, [rdx]
                ; mov QWORD [rdx], 3
                ; mov [RESULT as i32], r8
                ; mov [RESULT as i32 + 8], r9);
        });
        assert_eq!(fault, None);
        assert_eq!([guest.word(RESULT), guest.word(RESULT + 8)], [1, 2]);
        assert_eq!([guest.word(PAGES), guest.word(PAGES + 0x3000)], [1, 3]);
    });
}

#[test]
fn rights_that_are_gone_are_gone() {
    each(|guest| {
        guest.map(HEAP, PAGES);
        let entry = guest.entry(0, HEAP);
        let fault = guest.run(|e| {
            dynasm!(e ; .arch x64
                ; mov rdx, QWORD HEAP as i64
                ; mov QWORD [rdx], 5
                ; mov edi, entry as i32
                ; mov esi, (PAGES | READ_ONLY) as i32
                ; mov eax, REMAP
                ; syscall
                ; mov rax, [rdx]
                ; inc QWORD [rdx + 8]);
        });
        // Present, a write, by the user.
        assert_eq!(fault, Some([14, 7, HEAP + 8]));
        assert_eq!([guest.word(PAGES), guest.word(PAGES + 8)], [5, 0]);
    });
}

#[test]
fn what_is_not_there_faults_at_its_address() {
    each(|guest| {
        guest.map(HEAP, PAGES);
        let at = |offset: u64| {
            move |e: &mut Assembler| {
                dynasm!(e ; .arch x64
                    ; mov rdx, QWORD (HEAP + offset) as i64
                    ; mov eax, 1
                    ; add [rdx], rax);
            }
        };
        assert_eq!(guest.run(at(0xff8)), None);
        // An access to two pages faults on the one that is not there.
        assert_eq!(guest.run(at(0xffc)), Some([14, 6, HEAP + 0x1000]));
        assert_eq!(guest.run(at(0x2008)), Some([14, 6, HEAP + 0x2008]));
        // The kernel's half.
        assert_eq!(guest.run(at(0xffff_8000_0000_0010 - HEAP)), Some([14, 6, 0xffff_8000_0000_0010]));
        // No address at all: a general-protection fault, and CR2 is as it was.
        for (number, bit) in (47..63).enumerate() {
            let fault = guest.run(|e| {
                // An instruction that was refused a window is never again given one.
                (0..=number).for_each(|_| e.push(0x90));
                at(1 << bit)(e);
            });
            let [vector, code, _] = fault.expect("a fault");
            assert_eq!([vector, code], [13, 0], "bit {bit}");
        }
        assert_eq!(guest.word(PAGES + 0xff8), 1);
    });
}

/// R9 to R11 are the memory's on the host, and stores to them wait: an access that faults finds them as they are.
#[test]
fn registers_have_their_values_where_an_access_faults() {
    each(|guest| {
        guest.map(HEAP, PAGES);
        let fault = guest.run(|e| {
            dynasm!(e ; .arch x64
                ; mov rdx, QWORD (HEAP + 0x1ff0) as i64
                ; mov rbx, QWORD HEAP as i64
                ; mov ecx, 3
                ; lea r9, [rcx + 4]
                ; mov r10, r9
                ; add r10d, ecx
                ; mov [rbx], r10
                ; lea r11, [r10 + r9 * 2]
                ; imul r9, r9, 100
                ; inc r10
                ; add [rbx + 8], r9
                ; xor r11, [rbx]
                ; sub r10, r11
                ; mov rsi, [rdx + rcx * 8]
                ; xor r9d, r9d
                ; mov r10, r9
                ; mov r11, r9);
        });
        assert_eq!(fault, Some([14, 4, HEAP + 0x2008]));
        let state = guest.backend.state().expect("a state");
        let expected = [700, 11 - (24 ^ 10), 24 ^ 10].map(|value: i64| value as u64);
        assert_eq!(state.gpr[9..12], expected);
        assert_eq!([guest.word(PAGES), guest.word(PAGES + 8)], [10, 700]);
        guest.put(PAGES + 8, 0);
    });
}

#[test]
fn a_program_that_lies_where_this_process_does_sees_itself_alone() {
    each(|guest| {
        let heap = Box::new([0xaaaa_aaaa_aaaa_aaaa_u64; 1024]);
        let stack = [0xbbbb_bbbb_bbbb_bbbb_u64; 1024];
        let places = [
            heap.as_ptr().addr() as u64,
            stack.as_ptr().addr() as u64,
            run_of as *const () as u64,
            guest.memory.get_host_address(GuestAddress(0)).expect("in memory").addr() as u64,
        ];
        for place in places {
            let page = (place + 0xfff) & !0xfff;
            guest.map(page, PAGES + 0x8000);
            guest.put(PAGES + 0x8010, 77);
            let fault = guest.run(|e| {
                dynasm!(e ; .arch x64
                    ; mov rdx, QWORD page as i64
                    ; mov rax, [rdx + 0x10]
                    ; mov [RESULT as i32], rax
                    ; mov ecx, 0x20
                    ; mov QWORD [rdx + rcx], 99);
            });
            assert_eq!(fault, None);
            assert_eq!([guest.word(RESULT), guest.word(PAGES + 0x8020)], [77, 99]);
            // And where the guest has nothing, there is nothing.
            let next = page + 0x1000;
            let fault = guest.run(|e| {
                dynasm!(e ; .arch x64 ; mov rdx, QWORD next as i64 ; mov rax, [rdx]);
            });
            assert_eq!(fault, Some([14, 4, next]));
        }
        assert_eq!(*heap, [0xaaaa_aaaa_aaaa_aaaa; 1024]);
        assert_eq!(stack, [0xbbbb_bbbb_bbbb_bbbb; 1024]);
    });
}

fn run_of() {}

#[test]
fn code_that_a_program_writes_is_what_runs() {
    each(|guest| {
        // mov eax, N; ret
        const ROUTINE: [u8; 6] = [0xb8, 1, 0, 0, 0, 0xc3];
        guest.map(HEAP, PAGES);
        guest.memory.write_slice(&ROUTINE, GuestAddress(PAGES + 0x100)).expect("in memory");
        let fault = guest.run(|e| {
            dynasm!(e ; .arch x64
                ; mov rbx, QWORD HEAP as i64
                ; mov QWORD [rbx + 0x800], 0
                ; xor esi, esi
                ; xor edi, edi
                ; again:
                ; inc esi
                ; mov [rbx + 0x101], esi
                ; lea rcx, [rbx + 0x100]
                ; call rcx
                ; add edi, eax
                ; cmp esi, 100
                ; jne <again
                ; mov [RESULT as i32], rdi);
        });
        assert_eq!(fault, None);
        assert_eq!(guest.word(RESULT), 5050);
    });
}

#[test]
fn each_address_space_has_its_own_pages() {
    each(|guest| {
        for space in 0..2 {
            guest.map_in(space, HEAP, PAGES + space * 0x4000, ALL);
            guest.put(PAGES + space * 0x4000, 10 + space);
        }
        let fault = guest.run(|e| {
            dynasm!(e ; .arch x64
                ; mov rbx, QWORD HEAP as i64
                ; mov ebp, 6
                ; again:
                ; inc QWORD [rbx]
                ; mov edi, (TABLES + SPACE) as i32
                ; mov eax, SWITCH
                ; syscall
                ; add QWORD [rbx], 3
                ; mov edi, TABLES as i32
                ; mov eax, SWITCH
                ; syscall
                ; dec ebp
                ; jnz <again);
        });
        assert_eq!(fault, None);
        assert_eq!([guest.word(PAGES), guest.word(PAGES + 0x4000)], [16, 29]);
    });
}

/// The second one's are elsewhere, and neither loses any to the other.
#[test]
fn guests_at_the_same_addresses_have_windows_side_by_side() {
    let _alone = alone();
    let mut guests = ["windows", "windows", "windows+one-instruction"].map(Guest::new);
    for (number, guest) in (0..).zip(&mut guests) {
        guest.map(HEAP, PAGES);
        guest.put(PAGES, 100 * number);
    }
    let run = |guest: &mut Guest| {
        let fault = guest.run(|e| {
            dynasm!(e ; .arch x64
                ; mov rbx, QWORD HEAP as i64
                ; mov r9, rbx
                ; mov ecx, 2
                ; inc QWORD [rbx]
                ; push QWORD [r9]
                ; pop QWORD [r9 + 8]
                ; mov r10, [r9 + rcx * 4]
                ; lea r11, [r10 + r10]
                ; mov [rbx + rcx * 8], r11
                ; lock add [r9 + rcx * 8], r10
                ; call >on
                ; on:
                ; pop rax
                ; mov QWORD [RESULT as i32], 7
                ; movups xmm1, [rbx]
                ; movups [r9 + 0x20], xmm1);
        });
        assert_eq!(fault, None);
        assert_eq!(guest.word(RESULT), 7);
    };
    for round in 1..4 {
        for (number, guest) in (0..).zip(&mut guests) {
            let before = windows::opened();
            run(guest);
            let value = 100 * number + round;
            let words = [0, 8, 16, 0x20, 0x28].map(|at| guest.word(PAGES + at));
            assert_eq!(words, [value, value, 3 * value, value, value]);
            assert_eq!(windows::opened() == before, round > 1, "round {round}, guest {number}");
            // What it has no page for is its own fault, wherever its windows are.
            let fault = guest.run(|e| {
                dynasm!(e ; .arch x64 ; mov rdx, QWORD (HEAP + 0x3000) as i64 ; mov BYTE [rdx + 5], 1);
            });
            assert_eq!(fault, Some([14, 6, HEAP + 0x3005]));
        }
    }
}

#[test]
fn a_guest_that_unmaps_every_other_page_does_not_use_up_the_hosts_mappings() {
    const LARGE: u64 = 512;
    const START: u64 = 0x3000_0000_0000;
    let _alone = alone();
    let file = memory();
    let (tenure, _) = windows::join(START, 0, 0);
    assert_eq!(windows::claim(tenure, START, 0), Claim::Granted { shift: 0 }, "nothing lies there");
    let backing = |page: u64| Backing { file: file.as_raw_fd(), offset: page << 12, host: page << 12 };
    let open_all = || {
        for large in 0..128 {
            let at = START + ((large * LARGE) << 12);
            let opened = windows::open(tenure, at, backing(0), LARGE, || Some(true));
            assert_eq!(opened, Opening::Open { writable: true });
        }
    };
    // As many mappings as pages would be more than a process can have.
    open_all();
    windows::retain(tenure, |at, _, _| at >> 12 & 1 == 0);
    open_all();
    for page in (1..128 * LARGE).step_by(2) {
        windows::close(tenure, START + (page << 12));
    }
    open_all();
    for page in (1..LARGE).step_by(2) {
        windows::revoke(page << 12);
    }
    windows::retain(tenure, |_, _, _| false);
    assert_eq!(windows::count(), 0);
    windows::leave(tenure, 0);
}

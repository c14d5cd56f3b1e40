# From the PVH entry (Xen, docs/misc/pvh.pandoc: 32-bit protected mode, EBX = start info) to 64-bit C, and the ways in and out of traps.

        .section .note.Xen, "a", @note
        .long 4, 4, 18                  # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long start32

        .section .text.start, "ax"
        .code32
        .globl start32
start32:
        cld
        movl $boot_stack_top, %esp
        movl %ebx, start_info

        # Four page directories of 2 MiB pages: 0 to 4 GiB one to one, for everybody.
        movl $page_directories, %edi
        movl $0x87, %eax                # P W U PS
        xorl %edx, %edx
        movl $2048, %ecx
1:      movl %eax, (%edi)
        movl %edx, 4(%edi)
        addl $0x200000, %eax
        addl $8, %edi
        loop 1b
        movl $page_directories + 7, %eax
        movl $page_pointers, %edi
        movl $4, %ecx
1:      movl %eax, (%edi)
        movl $0, 4(%edi)
        addl $0x1000, %eax
        addl $8, %edi
        loop 1b
        movl $page_pointers + 7, page_root

        lgdt gdt_pointer
        movl $0x6a0, %eax               # PAE PGE OSFXSR OSXMMEXCPT
        movl %eax, %cr4
        movl $page_root, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx          # EFER: SCE LME NXE
        rdmsr
        orl $0x901, %eax
        wrmsr
        movl $0x80010033, %eax          # PG WP NE ET MP PE
        movl %eax, %cr0
        ljmp $0x10, $start64

        .code64
start64:
        movl $0x18, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        xorl %eax, %eax
        movl %eax, %fs
        movl %eax, %gs
        movq $boot_stack_top, %rsp
        fninit
        call setup
        call main
        movl %eax, %edi
        call finish

        .text
# int try(void (*f)(void)): calls f; the vector of the trap that ended it, or -1.
        .globl try
try:
        push %rbx
        push %rbp
        push %r12
        push %r13
        push %r14
        push %r15
        movq %rsp, recover_rsp
        call *%rdi
        movl $-1, %eax
return_from_try:
        pop %r15
        pop %r14
        pop %r13
        pop %r12
        pop %rbp
        pop %rbx
        ret

# int try_far(f, flags, cs, ss, rsp): the same through IRET, as at CPL 3 or in compatibility mode; f ends by a trap.
        .globl try_far
try_far:
        push %rbx
        push %rbp
        push %r12
        push %r13
        push %r14
        push %r15
        movq %rsp, recover_rsp
        push %rcx
        push %r8
        push %rsi
        push %rdx
        push %rdi
        iretq

# Out of a handler, back to the one who tried.
        .globl recover
recover:
        movq recover_rsp, %rsp
        push $2
        popfq
        movl $0x18, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl %edi, %eax
        jmp return_from_try

# A way in for each vector: vector and error code (or 0) on the stack, 16 bytes apart.
        .globl vectors
        .balign 16
vectors:
        .set vector, 0
        .rept 256
        .balign 16
        .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
        .else
        push $0
        .endif
        push $vector
        jmp common
        .set vector, vector + 1
        .endr
common:
        cld
        push %r15
        push %r14
        push %r13
        push %r12
        push %r11
        push %r10
        push %r9
        push %r8
        push %rdi
        push %rsi
        push %rbp
        push %rsp
        push %rbx
        push %rdx
        push %rcx
        push %rax
        movq %rsp, %rdi
        andq $-16, %rsp
        movq %rdi, %rbx
        call on_trap
        movq %rbx, %rsp
        pop %rax
        pop %rcx
        pop %rdx
        pop %rbx
        addq $8, %rsp
        pop %rbp
        pop %rsi
        pop %rdi
        pop %r8
        pop %r9
        pop %r10
        pop %r11
        pop %r12
        pop %r13
        pop %r14
        pop %r15
        addq $16, %rsp
        iretq

        .data
        .balign 16
        .globl gdt
gdt:
        .quad 0
        .quad 0x00cf9b000000ffff        # 08 code 32
        .quad 0x00af9b000000ffff        # 10 code 64
        .quad 0x00cf93000000ffff        # 18 data
        .quad 0x00cffb000000ffff        # 20 user code 32
        .quad 0x00cff3000000ffff        # 28 user data
        .quad 0x00affb000000ffff        # 30 user code 64
        .quad 0x00cf13000000ffff        # 38 data, not present
        .quad 0, 0                      # 40 call gate
        .quad 0, 0                      # 50 TSS
        .quad 0x00009b000000ffff        # 60 code 16, base 0
        .quad 0x000093000000ffff        # 68 data 16, base 0
        .quad 0x00cf91000000ffff        # 70 data, read-only
        .quad 0x004093001000000f        # 78 data, base 0x1000, 16 bytes
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt

        .bss
        .balign 4096
        .globl page_root, page_pointers, page_directories, idt, tss, recover_rsp, start_info
page_root:
        .skip 4096
page_pointers:
        .skip 4096
page_directories:
        .skip 4 * 4096
idt:
        .skip 4096
tss:
        .skip 128
recover_rsp:
        .skip 8
start_info:
        .skip 8
        .balign 16
        .skip 16384
        .globl boot_stack_top
boot_stack_top:
        .section .note.GNU-stack, "", @progbits

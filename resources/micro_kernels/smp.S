# Where other CPUs start: in real mode, on a page below 1 MiB that this is copied to; from there as start.S goes on, with
# what they came with (CS, CR0) as arguments.

        .text
        .code16
        .globl trampoline, trampoline_end
trampoline:
        cli
        movl %cr0, %esi
        xorl %edi, %edi
        movw %cs, %di
        movw %di, %ds
        lgdtl pointer - trampoline
        movl %esi, %eax
        orl $1, %eax
        movl %eax, %cr0
        ljmpl $8, $cpu32
        .balign 4
        .word 0
pointer:
        .word 0x7f
        .long gdt
trampoline_end:

        .code32
cpu32:
        movl $0x18, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
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
        ljmp $0x10, $cpu64

        .code64
cpu64:
        xorl %eax, %eax
        movl %eax, %fs
        movl %eax, %gs
        # One that is started again gets another stack.
        movl $1, %eax
        lock xaddl %eax, started
        andl $127, %eax
        incl %eax
        shll $12, %eax
        leaq more_stacks(%rax), %rsp
        call cpu_main

        .bss
        .balign 4096
more_stacks:
        .skip 128 * 4096
        .section .note.GNU-stack, "", @progbits

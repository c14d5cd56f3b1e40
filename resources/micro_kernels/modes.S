# Mode switches: 64-bit to 32-bit protected mode without paging, to 16-bit protected and real mode, and all the way back; 16-bit code
# with segments that wrap and have bases; the real mode's interrupts (SDM vol. 3A, Mode Switching and Real-Address Mode Operation).

        .set BASE, 0x8000                       # where the 16-bit code is copied: linear = BASE + offset

        .text
        .code64
        .globl enter_modes
enter_modes:
        push %rbx
        push %rbp
        push %r12
        push %r13
        push %r14
        push %r15
        movq %rsp, kept_rsp
        ljmp *to_32

        .code32
in_32:  movl $0x18, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl $BASE, %esp
        movl %cr0, %eax                         # paging off: back to protected mode
        andl $0x7fffffff, %eax
        movl %eax, %cr0
        movl $0xc0000080, %ecx
        rdmsr
        movl %eax, kept_efer
        andl $~0x100, %eax
        wrmsr
        movl $1, mode_protected
        pushl $0x89abcdef                       # plain 32-bit code runs
        popl %ebx
        aam
        movl %ebx, seen_32
        lidt real_idt
        ljmp $0x60, $(in_16 - low_begin + BASE)

back_32:
        movl $0x18, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl kept_efer, %eax
        xorl %edx, %edx
        movl $0xc0000080, %ecx
        wrmsr
        movl %cr0, %eax
        orl $0x80000000, %eax
        movl %eax, %cr0
        ljmp $0x10, $back_64
        .code64
back_64:
        movl $0x18, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movq kept_rsp, %rsp
        pop %r15
        pop %r14
        pop %r13
        pop %r12
        pop %rbp
        pop %rbx
        ret

        # Copied to BASE; runs with CS base 0 in protected mode, then as 0000:BASE in real mode.
        .globl low_begin, low_end
        .code16
low_begin:
in_16:  movw $0x68, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movl %cr0, %eax
        andb $0xfe, %al
        movl %eax, %cr0
        ljmp $0, $(real - low_begin + BASE)
real:   xorw %ax, %ax
        movw %ax, %ds
        movw %ax, %ss
        movw $BASE, %sp
        movw $0x2000, %ax                       # a segment with a base
        movw %ax, %es
        movw $0x1234, %es:0x10                  # to 0x20010
        movw $0xffff, %bx                       # bytes at the segment's end, one by one
        movb $0x77, %es:(%bx)                   # to 0x2ffff
        movw $0xfff0, %si                       # effective addresses wrap at 64 KiB
        movb $0x66, %es:0x20(%si)               # to 0x20010
        movw $0xfffe, %di                       # strings wrap too
        movw $3, %cx
        movb $0x55, %al
        cld
        rep stosb                               # to 0x2fffe, 0x2ffff, 0x20000
        movw %di, BASE - 0x100
        # The stack wraps as well.
        movw $0x3000, %ax
        movw %ax, %ss
        xorw %sp, %sp
        pushw $0xabcd                           # to 0x3fffe
        movw %sp, BASE - 0xfe
        xorw %ax, %ax
        movw %ax, %ss
        movw $BASE - 0x200, %sp
        # Interrupts through the vector table at 0: INT 0x21 and #DE.
        movw $(isr21 - low_begin + BASE), 0x21 * 4
        movw $0, 0x21 * 4 + 2
        movw $(isr0 - low_begin + BASE), 0
        movw $0, 2
        stc
        int $0x21
        movw %dx, BASE - 0xfc
        xorw %cx, %cx
        movw $1, %ax
        xorw %dx, %dx
divide: divw %cx
        movw %bp, BASE - 0xfa
        # Far call and return, loop, 32-bit operands.
        movl $0x12345678, %eax
        lcall $(BASE >> 4), $(far - low_begin)
        movl %eax, BASE - 0xf8
        # A segment past 1 MiB, A20 open: FFFF:0010 is 0x100000.
        movw $0xffff, %ax
        movw %ax, %es
        movb %es:0x10, %al
        movb %al, BASE - 0xf4
        # Big real mode: limits of 4 GiB stay when PE is cleared.
        cli
        lgdtl gdt_copy - low_begin + BASE
        movl %cr0, %eax
        orb $1, %al
        movl %eax, %cr0
        movw $0x18, %bx
        movw %bx, %es
        andb $0xfe, %al
        movl %eax, %cr0
        movl $0x400000, %ebx
        movl $0xfeedface, %es:(%ebx)
        movw $BASE, %ax                         # V86-like arithmetic on segments does not change its limit
        # Back to protected mode.
        movl %cr0, %eax
        orb $1, %al
        movl %eax, %cr0
        ljmpl $0x08, $back_32
isr21:  movw $0x2121, %dx
        iret
isr0:   movw $0xde, %bp
        pushw %bx
        movw %sp, %bx
        addw $2, %ss:2(%bx)                     # past the DIV
        popw %bx
        iret
far:    addl $0x11111111, %eax
        lret
gdt_copy:
        .word 0x7f
        .long gdt
low_end:
        .code64

        .data
        .balign 8
to_32:  .long in_32
        .word 0x08
        .balign 8
real_idt:
        .word 0x3ff
        .long 0
        .globl mode_protected, seen_32
mode_protected:
        .long 0
seen_32:
        .long 0
kept_efer:
        .long 0
        .balign 8
kept_rsp:
        .quad 0
        .section .note.GNU-stack, "", @progbits

# The smallest guest: an ELF file with a PVH entry (Xen's "x86/HVM direct boot ABI") whose first instructions send
# a "!" to COM1 and then end the machine through the ISA debug exit at port 0xf4 with the value 0x31. The bytes mean
# the same in 32-bit and 64-bit mode, so that it does not matter which entry a VMM takes.
        .section .note.Xen, "a", @note
        .balign 4
        .long 4                 # size of the name
        .long 4                 # size of the value
        .long 18                # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .balign 4
        .long _start
        .text
        .code32
        .globl _start
_start: movw $0x3f8, %dx
        movb $0x21, %al
        outb %al, %dx
        movb $0x31, %al
        outb %al, $0xf4
1:      hlt
        jmp 1b

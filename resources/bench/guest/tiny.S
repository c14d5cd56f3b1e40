# The smallest program: it exits with 0. Static, without a C library, so that the exec workload is the kernel's work alone.
        .globl _start
_start: mov $60, %eax
        xor %edi, %edi
        syscall
        .section .note.GNU-stack, "", @progbits

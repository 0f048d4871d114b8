"""MSR numbers of the hypercalls (docs: the hypercall ABI; KVM's own in Linux, Documentation/virt/kvm/x86/msr.rst)."""

from __future__ import annotations

KVM_WALL_CLOCK_OLD = 0x11
KVM_SYSTEM_TIME_OLD = 0x12
KVM_WALL_CLOCK = 0x4B56_4D00
KVM_SYSTEM_TIME = 0x4B56_4D01

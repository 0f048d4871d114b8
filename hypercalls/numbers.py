"""MSR numbers of the hypercalls (docs/hypercalls.md; KVM's own in Linux, Documentation/virt/kvm/x86/msr.rst)."""

from __future__ import annotations

KVM_WALL_CLOCK_OLD = 0x11
KVM_SYSTEM_TIME_OLD = 0x12
KVM_WALL_CLOCK = 0x4B56_4D00
KVM_SYSTEM_TIME = 0x4B56_4D01
KVM_PV_EOI_EN = 0x4B56_4D04

KVM_FIRST, KVM_LAST = 0x4B56_4D00, 0x4B56_4D08      # KVM's, whether it uses them yet or not
FIRST, LAST = 0x4B56_4D09, 0x4B56_4DFF              # ours, and those of users: from FIRST_USER on
FIRST_USER = 0x4B56_4D20

PV_INFORMATION = 0x4B56_4D09
PV_EXIT = 0x4B56_4D0A
PV_MARK = 0x4B56_4D0B
PV_WALL_CLOCK = 0x4B56_4D0C
PV_RANDOM = 0x4B56_4D0D
PV_READ = 0x4B56_4D10
PV_WRITE = 0x4B56_4D11
PV_MAILBOX = 0x4B56_4D12
PV_CONSOLE = 0x4B56_4D14
PV_IDLE = 0x4B56_4D15

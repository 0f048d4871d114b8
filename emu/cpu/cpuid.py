"""What the CPU says it is, chosen for what is fast here.

The model is QEMU's qemu64: an AMD, so that Linux does without page table isolation and MDS clearing (each would flush
the TLB at every system call), of a family for which Linux picks unrolled copy and clear loops instead of REP MOVS
and STOS, which TCG runs an iteration at a time.
"""

from __future__ import annotations

KVM_SIGNATURE_LEAF = 0x4000_0000
KVM_FEATURES_LEAF = 0x4000_0001
KVM_FEATURE_CLOCKSOURCE = 1 << 0        # MSRs 0x11 and 0x12
KVM_FEATURE_NOP_IO_DELAY = 1 << 1
KVM_FEATURE_CLOCKSOURCE2 = 1 << 3       # MSRs 0x4b564d00 and 01
KVM_FEATURE_PV_EOI = 1 << 6             # MSR 0x4b564d04
KVM_FEATURE_CLOCKSOURCE_STABLE = 1 << 24
KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"

_EBX, _ECX, _EDX = (int.from_bytes(KVM_SIGNATURE[at : at + 4], "little") for at in (0, 4, 8))
_FEATURES = (
    KVM_FEATURE_CLOCKSOURCE | KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_PV_EOI
    | KVM_FEATURE_CLOCKSOURCE_STABLE
)

HYPERVISOR_LEAVES = ((KVM_FEATURES_LEAF, _EBX, _ECX, _EDX), (_FEATURES, 0, 0, 0), (0, 0, 0, 0))
"""EAX, EBX, ECX, EDX of leaves 0x40000000, 0x40000001, and of all that follow (Linux, Documentation/virt/kvm/x86)."""

SET: dict[str, int] = {
    "1_ECX": 1 << 31                    # HYPERVISOR
    | 1 << 24                           # TSC_DEADLINE: one MSR write sets a timer
    | 1 << 23                           # POPCNT
    | 1 << 21                           # X2APIC: an MSR access is cheaper than one to memory
    | 1 << 9,                           # SSSE3
    "6_EAX": 1 << 2,                    # ARAT: the local APIC's timer runs while the CPU halts
    "7_0_EBX": 1 << 0,                  # FSGSBASE: no MSR access at a context switch
}
"""Feature bits added to the model's, by word."""

CLEAR: dict[str, int] = {
    "1_EDX": 1 << 11,                   # SEP: libunicorn's SYSENTER does nothing but call hooks
    "1_ECX": 1 << 3,                    # MONITOR
    "80000001_ECX": 1 << 2              # SVM: it is the trap door, not the guest's
    | 1 << 4,                           # CR8LEG
}
"""Feature bits taken away. EFER writes are checked against these words too, so SVME cannot be set either."""


def adjust(features: dict[str, int]) -> dict[str, int]:
    """The model's feature words as this machine presents them."""
    return {word: (value | SET.get(word, 0)) & ~CLEAR.get(word, 0) for word, value in features.items()}

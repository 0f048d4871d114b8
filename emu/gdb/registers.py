"""A CPU's registers as gdb knows them: which there are, how they are named, and their bytes.

The names and the order inside of features are gdb's (Debugging with GDB, G.5.21, i386 Features), but for the control
registers, which it knows nothing of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from devices.frozen import frozen, replace
from emu.cpu.registers import GENERAL, MASK_64
from emu.cpu.state import CpuState, Fpu

__all__ = ["ReadOnly", "Register", "description", "registers"]

CORE, SSE, SEGMENTS, CONTROL = (
    *("org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse", "org.gnu.gdb.i386.segments", "pvemu.control"),
)
ORDER = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
ORDER_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
SEGMENT_ORDER = ("cs", "ss", "ds", "es", "fs", "gs")
SEGMENT_INDEX = {"es": 0, "cs": 1, "ss": 2, "ds": 3, "fs": 4, "gs": 5}      # in CpuState.segments
MSR_KERNEL_GS_BASE = 0xC000_0102
TOP_SHIFT, TOP_MASK = 11, 7             # of the x87 status word
VALID, ZERO, SPECIAL, EMPTY = range(4)  # tags of the x87 registers (Intel SDM volume 1, 8.1.7)
EXPONENT_MAX, INTEGER_BIT = 0x7FFF, 1 << 63

FLAGS = (
    ("CF", 0), ("", 1), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10), ("OF", 11),
    ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20), ("ID", 21),
)
MXCSR_FLAGS = (
    ("IE", 0), ("DE", 1), ("ZE", 2), ("OE", 3), ("UE", 4), ("PE", 5), ("DAZ", 6), ("IM", 7), ("DM", 8), ("ZM", 9),
    ("OM", 10), ("UM", 11), ("PM", 12), ("FZ", 15),
)
VECTORS = (
    ("v8bf16", "bfloat16", 8), ("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16),
    ("v8i16", "int16", 8), ("v4i32", "int32", 4), ("v2i64", "int64", 2),
)
VECTOR_FIELDS = (
    ("v8_bfloat16", "v8bf16"), ("v4_float", "v4f"), ("v2_double", "v2d"), ("v16_int8", "v16i8"), ("v8_int16", "v8i16"),
    ("v4_int32", "v4i32"), ("v2_int64", "v2i64"), ("uint128", "uint128"),
)


class ReadOnly(ValueError):
    """A register that a debugger cannot write here."""


@frozen
class Register:
    """One register.

    Attributes:
        name: gdb's.
        bits: its width in packets.
        kind: gdb's type.
        feature: of the target description.
        get: its value.
        put: the state with another value, which has its width.
        group: gdb's, where it would not find it by itself.
    """

    name: str
    bits: int
    kind: str
    feature: str
    get: Callable[[CpuState], int]
    put: Callable[[CpuState, int], CpuState]
    group: str = ""

    @property
    def size(self) -> int:
        """Bytes in packets."""
        return self.bits // 8

    def read(self, state: CpuState) -> bytes:
        """Its bytes."""
        return (self.get(state) & (1 << self.bits) - 1).to_bytes(self.size, "little")

    def write(self, state: CpuState, data: bytes) -> CpuState:
        """The state with its bytes changed.

        Raises:
            ReadOnly: it cannot be changed to that.
        """
        value = int.from_bytes(data, "little")
        if data == self.read(state):
            return state
        return self.put(state, value)


@cache
def registers(is_long: bool) -> tuple[Register, ...]:
    """All of them in the order of their numbers.

    Args:
        is_long: as 64-bit code has them; else as 32-bit code has them.
    """
    return (*_core(is_long), *_x87(), *_sse(16 if is_long else 8), *(_segment_bases() if is_long else ()), *_control())


def _core(is_long: bool) -> Iterator[Register]:
    width = 64 if is_long else 32
    for name in ORDER if is_long else ORDER_32:
        kind = ("data_ptr" if name in ("rbp", "rsp", "ebp", "esp") else f"int{width}")
        index = GENERAL.index(name if is_long else "r" + name[1:])
        yield Register(name, width, kind, CORE, *_general(index))
    yield Register(
        "rip" if is_long else "eip", width, "code_ptr", CORE,
        lambda state: state.rip, lambda state, value: replace(state, rip=value, halted=False),
    )
    yield Register(
        "eflags", 32, "i386_eflags", CORE,
        lambda state: state.rflags, lambda state, value: replace(state, rflags=value | 2),
    )
    for name in SEGMENT_ORDER:
        yield Register(name, 32, "int32", CORE, _selector(SEGMENT_INDEX[name]), _refused)


def _general(index: int) -> tuple[Callable[[CpuState], int], Callable[[CpuState, int], CpuState]]:
    def put(state: CpuState, value: int) -> CpuState:
        return replace(state, general=_changed(state.general, index, value & MASK_64))

    return lambda state: state.general[index], put


def _changed(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _selector(index: int) -> Callable[[CpuState], int]:
    return lambda state: state.segments[index].selector


def _refused(state: CpuState, value: int) -> CpuState:
    raise ReadOnly


def _x87() -> Iterator[Register]:
    for number in range(8):
        yield Register(f"st{number}", 80, "i387_ext", CORE, *_stack(number))
    fields: tuple[tuple[str, Callable[[Fpu], int], Callable[[Fpu, int], Fpu]], ...] = (
        ("fctrl", lambda fpu: fpu.control, lambda fpu, value: replace(fpu, control=value & 0xFFFF)),
        ("fstat", lambda fpu: fpu.status, lambda fpu, value: replace(fpu, status=value & 0xFFFF)),
        ("ftag", _tag_word, lambda fpu, value: replace(fpu, tags=_used(value))),
        ("fiseg", lambda fpu: fpu.code[0], lambda fpu, value: replace(fpu, code=(value & 0xFFFF, fpu.code[1]))),
        ("fioff", lambda fpu: fpu.code[1], lambda fpu, value: replace(fpu, code=(fpu.code[0], value))),
        ("foseg", lambda fpu: fpu.data[0], lambda fpu, value: replace(fpu, data=(value & 0xFFFF, fpu.data[1]))),
        ("fooff", lambda fpu: fpu.data[1], lambda fpu, value: replace(fpu, data=(fpu.data[0], value))),
        ("fop", lambda fpu: fpu.opcode, lambda fpu, value: replace(fpu, opcode=value & 0x7FF)),
    )
    for name, get, put in fields:
        yield Register(name, 32, "int", CORE, *_fpu(get, put), "float")


def _fpu(
    get: Callable[[Fpu], int], put: Callable[[Fpu, int], Fpu]
) -> tuple[Callable[[CpuState], int], Callable[[CpuState, int], CpuState]]:
    return lambda state: get(state.fpu), lambda state, value: replace(state, fpu=put(state.fpu, value))


def _stack(number: int) -> tuple[Callable[[CpuState], int], Callable[[CpuState, int], CpuState]]:
    """ST(number); the registers themselves lie in a ring that TOP points into."""

    def place(fpu: Fpu) -> int:
        return (fpu.status >> TOP_SHIFT) + number & TOP_MASK

    return _fpu(
        lambda fpu: fpu.registers[place(fpu)],
        lambda fpu, value: replace(fpu, registers=_changed(fpu.registers, place(fpu), value)),
    )


def _tag_word(fpu: Fpu) -> int:
    """Two bits for each register, as FSTENV stores them."""
    word = 0
    for number, value in enumerate(fpu.registers):
        exponent = value >> 64 & EXPONENT_MAX
        tag = VALID if 0 < exponent < EXPONENT_MAX and value & INTEGER_BIT else SPECIAL
        if not fpu.tags & 1 << number:
            tag = EMPTY
        elif not value & (EXPONENT_MAX << 64 | MASK_64):
            tag = ZERO
        word |= tag << 2 * number
    return word


def _used(tag_word: int) -> int:
    """A bit for each register, as FXSAVE stores them."""
    return sum(1 << number for number in range(8) if tag_word >> 2 * number & 3 != EMPTY)


def _sse(count: int) -> Iterator[Register]:
    for number in range(count):
        yield Register(f"xmm{number}", 128, "vec128", SSE, *_vector(number))
    yield Register(
        "mxcsr", 32, "i386_mxcsr", SSE,
        lambda state: state.mxcsr, lambda state, value: replace(state, mxcsr=value & 0xFFFF), "vector",
    )


def _vector(number: int) -> tuple[Callable[[CpuState], int], Callable[[CpuState, int], CpuState]]:
    def put(state: CpuState, value: int) -> CpuState:
        return replace(state, xmm=_changed(state.xmm, number, value))

    return lambda state: state.xmm[number], put


def _segment_bases() -> Iterator[Register]:
    for name, index in ("fs_base", SEGMENT_INDEX["fs"]), ("gs_base", SEGMENT_INDEX["gs"]):
        yield Register(name, 64, "int64", SEGMENTS, *_base(index))


def _base(index: int) -> tuple[Callable[[CpuState], int], Callable[[CpuState, int], CpuState]]:
    def put(state: CpuState, value: int) -> CpuState:
        segments = list(state.segments)
        segments[index] = replace(segments[index], base=value)
        return replace(state, segments=tuple(segments))

    return lambda state: state.segments[index].base, put


def _control() -> Iterator[Register]:
    for name in "cr0", "cr2", "cr3", "cr4", "efer":
        yield Register(name, 64, "int64", CONTROL, *_plain(name), "system")
    yield Register(
        "k_gs_base", 64, "int64", CONTROL, lambda state: dict(state.msrs)[MSR_KERNEL_GS_BASE], _refused, "system"
    )


def _plain(name: str) -> tuple[Callable[[CpuState], int], Callable[[CpuState, int], CpuState]]:
    def get(state: CpuState) -> int:
        value: int = getattr(state, name)
        return value

    return get, lambda state, value: replace(state, **{name: value})


# -- the target description --------------------------------------------------------------------------------------


@cache
def description(is_long: bool) -> bytes:
    """The XML document (Debugging with GDB, appendix G) that says all this."""
    features = []
    for feature in dict.fromkeys(register.feature for register in registers(is_long)):
        lines = [*_types(feature)]
        for register in registers(is_long):
            if register.feature == feature:
                group = f' group="{register.group}"' if register.group else ""
                lines.append(f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}"{group}/>')
        features.append(f'<feature name="{feature}">\n' + "\n".join(lines) + "\n</feature>\n")
    architecture = "i386:x86-64" if is_long else "i386"
    return (
        '<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n<target version="1.0">\n'
        f"<architecture>{architecture}</architecture>\n{''.join(features)}</target>\n"
    ).encode()


def _types(feature: str) -> Iterator[str]:
    if feature == CORE:
        yield _flags("i386_eflags", FLAGS)
    if feature == SSE:
        for name, kind, count in VECTORS:
            yield f'<vector id="{name}" type="{kind}" count="{count}"/>'
        fields = "".join(f'<field name="{name}" type="{kind}"/>' for name, kind in VECTOR_FIELDS)
        yield f'<union id="vec128">{fields}</union>'
        yield _flags("i386_mxcsr", MXCSR_FLAGS)


def _flags(name: str, flags: tuple[tuple[str, int], ...]) -> str:
    fields = "".join(f'<field name="{flag}" start="{bit}" end="{bit}"/>' for flag, bit in flags)
    return f'<flags id="{name}" size="4">{fields}</flags>'

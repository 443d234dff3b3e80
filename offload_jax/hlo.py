"""What a compiled program does per device, read from its optimised HLO text.

XLA's own cost analysis counts the body of a loop once, whatever its trip count. Here a body counts
as often as it runs: counts are read from the loops' conditions, and the caller gives those of loops
whose length is data (a decode loop). Of a conditional the dearer branch counts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from offload_jax.settings import require

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in "su" for bits in (2, 4, 8, 16, 32, 64)
}
_BITS |= {"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
# They name values, order or wait, and move nothing themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "while"),
    *("conditional", "call", "custom-call", "after-all", "partition-id", "replica-id"),
    *("async-start", "async-update", "optimization-barrier"),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of the program, on one device."""

    kind: str
    bytes: int  # of what is gathered, reduced or exchanged, before any scattering
    times: int  # how often it runs
    loops: tuple[str, ...]  # the loops around it, outermost first
    repeats: bool  # in a loop of unknown length, on what is the same in every turn


@dataclasses.dataclass
class Work:
    """What one device does."""

    flops: float = 0.0  # of matrix products, a multiply-add being two
    bytes: float = 0.0  # between operations and main memory (HBM)
    collectives: list[Collective] = dataclasses.field(default_factory=list)

    def add(self, other: "Work") -> None:
        """Both together."""
        self.flops += other.flops
        self.bytes += other.bytes
        self.collectives += other.collectives


@dataclasses.dataclass(frozen=True)
class _Array:
    dims: tuple[int, ...]
    bits: int
    main: bool  # in main memory, not in a chip's small memories (memory space S(1) and up)

    @property
    def bytes(self) -> int:
        return math.prod(self.dims) * self.bits // 8


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    arrays: tuple[_Array, ...]  # its results
    is_tuple: bool
    opcode: str
    operands: tuple[str, ...]
    text: str  # operands and attributes

    @functools.cached_property
    def called(self) -> list[str]:
        """The computations it names: body, condition, branches, or what is fused."""
        found = re.findall(r"(?:calls|to_apply|body|true_computation)=%([\w.\-]+)", self.text)
        found += re.findall(r"false_computation=%([\w.\-]+)", self.text)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", self.text):
            found += re.findall(r"%([\w.\-]+)", branches)
        return found

    def number(self, attribute: str, default: int = 0) -> int:
        found = re.search(rf"\b{attribute}=(\d+)", self.text)
        return int(found[1]) if found else default

    def dims(self, attribute: str) -> list[int]:
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.text)
        return [int(x) for x in found[1].split(",") if x] if found else []


@dataclasses.dataclass(frozen=True)
class _Computation:
    instructions: dict[str, _Instruction]  # operands come before their users
    root: str

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        all_ = self.instructions.values()
        return {int(x.text[1:-1].split(")")[0]): x.name for x in all_ if x.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[_Instruction]]:
        users: dict[str, list[_Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users


def work(text: str, unknown_trips: Sequence[int] = ()) -> Work:
    """The work of the program `text` (`compiled.as_text()`) on one device.

    Args:
        text: optimised, scheduled HLO.
        unknown_trips: how often the loops run whose count depends on data, in program order.

    Raises:
        ValueError: the program has more or fewer such loops.
    """
    return _Reader(text, unknown_trips).read()


class _Reader:
    """Walks the computations of a program, innermost work times the trips of the loops around."""

    def __init__(self, text: str, unknown_trips: Sequence[int]):
        self.computations, self.entry = _parse(text)
        self._given, self._unknown = list(unknown_trips), 0
        self._seen: set[tuple] = set()

    def read(self) -> Work:
        entry = self.computations[self.entry]
        varies = dict.fromkeys(entry.parameters.values(), False)
        result, _ = self._walk(self.entry, 1, (), varies, in_unknown=False)
        require(
            self._unknown == len(self._given),
            f"The program has {self._unknown} loops whose length depends on data;"
            f" {len(self._given)} counts were given.",
        )
        return result

    def _walk(self, name, times, loops, varies, in_unknown) -> tuple[Work, dict]:
        """A computation's work, and which of its values change from turn to turn.

        Args:
            name: of the computation.
            times: how often it runs.
            loops: the loops around it.
            varies: of its parameters by name, whether they change in the turns of the loop of
                unknown length; for a tuple, a list of that.
            in_unknown: whether there is such a loop around it.
        """
        total, computation = Work(), self.computations[name]
        varies = dict(varies)
        for op in computation.instructions.values():
            if op.opcode == "parameter":
                continue
            inputs = [varies.get(operand, False) for operand in op.operands]
            varies[op.name] = _variation(op, inputs)
            if op.opcode == "while":
                inner, varies[op.name] = self._loop(
                    op, computation, times, loops, inputs[0], in_unknown
                )
                total.add(inner)
            elif op.opcode == "conditional":
                branches = [
                    self._called(branch, times, loops, [of], in_unknown)
                    for branch, of in zip(op.called, inputs[1:], strict=True)
                ]
                total.add(max(branches, key=lambda w: (w.flops, w.bytes)))
            elif op.opcode in ("fusion", "call", "async-start"):
                inner = self._called(op.called[0], times, loops, inputs, in_unknown)
                if op.opcode == "fusion":
                    inner.bytes = times * self._fusion_bytes(op, computation)
                total.add(inner)
            else:
                total.flops += times * _flops(op, computation)
                total.bytes += times * _bytes(op, computation)
            kind = op.opcode.removesuffix("-start")
            if kind in _KINDS and self._new(op, loops):
                repeats = in_unknown and not any(_any(x) for x in inputs)
                size = _size(op.arrays)
                if kind == "reduce-scatter":
                    size = sum(_size(x.arrays) for x in _of(op, computation))
                if op.opcode.endswith("-start") and op.is_tuple:  # (operands, results, ...)
                    size = max(x.bytes for x in op.arrays)
                total.collectives.append(Collective(kind, size, times, loops, repeats))
        return total, varies

    def _called(self, name, times, loops, inputs, in_unknown) -> Work:
        parameters = self.computations[name].parameters
        varies = {parameters[i]: of for i, of in enumerate(inputs) if i in parameters}
        return self._walk(name, times, loops, varies, in_unknown)[0]

    def _new(self, op: _Instruction, loops) -> bool:
        """False for a later piece of a collective that was cut up to overlap with computing."""
        channel = op.number("channel_id", -1)
        if channel < 0:
            return True
        key = (channel, loops)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _loop(self, op, computation, times, loops, initial, in_unknown) -> tuple[Work, list]:
        body_name = re.search(r"body=%([\w.\-]+)", op.text)[1]
        condition = re.search(r"condition=%([\w.\-]+)", op.text)[1]
        trips = self._trips(op, computation, self.computations[condition])
        known = trips is not None
        body = self.computations[body_name]
        parameter, root = body.parameters[0], body.instructions[body.root]
        if not known:
            require(
                self._unknown < len(self._given),
                f"The program has more than the {len(self._given)} loops whose length depends on"
                " data.",
            )
            trips, self._unknown = self._given[self._unknown], self._unknown + 1
            kept = [_is_element(body, x, parameter, i) for i, x in enumerate(root.operands)]
            varies = [not same for same in kept]
        else:
            varies = initial if isinstance(initial, list) else [initial] * len(root.operands)
        label = re.search(r'op_name="([^"]*)"', op.text)
        loops = (*loops, label[1] if label else op.name)
        while True:
            seen, unknown = set(self._seen), self._unknown
            inner, values = self._walk(
                body_name, times * trips, loops, {parameter: varies}, in_unknown or not known
            )
            after = [
                a or _any(values.get(x, False)) for a, x in zip(varies, root.operands, strict=True)
            ]
            if not known or after == varies:
                return inner, after
            # What changes in one turn of this inner loop changes what the next one sees.
            varies, self._seen, self._unknown = after, seen, unknown

    def _trips(self, op, computation, condition) -> int | None:
        """How often a loop runs, if that is written in the program: `i < n` from a constant."""
        known = re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', op.text)
        if known:
            return int(known[1])
        root = condition.instructions[condition.root]
        limits = list(root.operands)
        if root.opcode == "fusion":
            inner = self.computations[root.called[0]]
            outer, root = root, inner.instructions[inner.root]
            places = {name: i for i, name in inner.parameters.items()}
            limits = [outer.operands[places[x]] if x in places else x for x in root.operands]
            scopes = [condition.instructions | inner.instructions] * len(limits)
        else:
            scopes = [condition.instructions] * len(limits)
        if root.opcode != "compare" or "direction=LT" not in root.text:
            return None
        initial = computation.instructions.get(op.operands[0])
        values = [
            self._constant(x, scope, initial, computation)
            for x, scope in zip(limits, scopes, strict=True)
        ]
        return None if None in values else max(values[1] - values[0], 0)

    def _constant(self, name, scope, initial, computation) -> int | None:
        """The value of a loop's scalar before its first turn, if it is a constant."""
        op = scope.get(name)
        while op is not None and op.opcode in ("copy", "bitcast", "convert"):
            op = scope.get(op.operands[0])
        if op is None:
            return None
        if op.opcode == "constant":
            found = re.match(r"\((-?\d+)\)", op.text)
            return int(found[1]) if found else None
        if op.opcode == "get-tuple-element" and initial is not None and initial.opcode == "tuple":
            outer = computation.instructions
            return self._constant(initial.operands[op.number("index")], outer, None, computation)
        return None

    def _fusion_bytes(self, op: _Instruction, computation: _Computation) -> float:
        """Main memory read and written by a fusion: of sliced operands, only the slices."""
        inner = self.computations[op.called[0]]
        read = 0
        for i, operand in enumerate(_of(op, computation)):
            if operand.is_tuple or i not in inner.parameters or not _size(operand.arrays, True):
                continue
            size = _size(operand.arrays)
            read += min(size, _read(inner, inner.parameters[i], size))
        root = inner.instructions[inner.root]
        results = (
            [inner.instructions[x] for x in root.operands] if root.opcode == "tuple" else [root]
        )
        written = sum(
            _written(inner, x) for x, array in zip(results, op.arrays, strict=False) if array.main
        )
        return read + written


def _read(inner: _Computation, name: str, size: int) -> int:
    """How many bytes of the value `name` of a fusion its users read."""
    total = 0
    for user in inner.users[name]:
        if user.opcode == "bitcast":
            total += _read(inner, user.name, size)
        elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            total += _size(user.arrays)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.opcode in _FREE or user.opcode.removesuffix("-start") in _KINDS:
            continue  # handed on, or counted with the collective
        else:
            return size
    return total


def _written(inner: _Computation, op: _Instruction) -> int:
    while op.opcode == "bitcast":
        op = inner.instructions[op.operands[0]]
    if op.opcode in _FREE or op.opcode.removesuffix("-start") in _KINDS:
        return 0
    if op.opcode == "dynamic-update-slice":
        return _size(inner.instructions[op.operands[1]].arrays)
    return _size(op.arrays)


def _bytes(op: _Instruction, computation: _Computation) -> float:
    """Main memory read and written by an operation that is not fused."""
    if op.opcode in _FREE or op.opcode.endswith("-done"):
        return 0
    if op.opcode == "copy-start":  # (to, from, a flag)
        return _size(op.arrays[:2], True)
    if op.opcode == "slice-start":  # (what is sliced, the slice, a flag)
        return op.arrays[-2].bytes + _size(op.arrays[-2:-1], True)
    if op.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _size(op.arrays, True)
    if op.opcode == "dynamic-update-slice":
        return 2 * _size(_of(op, computation)[1].arrays, True)
    return _size(op.arrays, True) + sum(_size(x.arrays, True) for x in _of(op, computation))


def _flops(op: _Instruction, computation: _Computation) -> float:
    """Of a matrix product; everything else is little beside those."""
    if op.opcode == "dot":
        left = _of(op, computation)[0].arrays[0].dims
        contracted = math.prod(left[i] for i in op.dims("lhs_contracting_dims"))
        return 2.0 * math.prod(op.arrays[0].dims) * contracted
    if op.opcode == "convolution":  # what XLA:TPU makes of matrix products
        left, right = (x.arrays[0].dims for x in _of(op, computation))
        return _convolution(op, left, right)
    return 0.0


def _convolution(op: _Instruction, left, right) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.text)
    inputs, kernel = (
        dict(zip(labels[1], left, strict=True)),
        dict(zip(labels[2], right, strict=True)),
    )
    output = dict(zip(labels[3], op.arrays[0].dims, strict=True))
    products = inputs["b"] * kernel["i"] * kernel["o"] / op.number("batch_group_count", 1)
    window = re.search(r"window=\{([^}]*)\}", op.text)
    fields = dict(pair.split("=") for pair in window[1].split()) if window else {}
    spatial = sorted(label for label in inputs if label.isdigit())
    for i, label in enumerate(spatial):

        def field(name, default, i=i):
            return fields[name].split("x")[i] if name in fields else default

        products *= _overlaps(
            inputs[label],
            kernel[label],
            output[label],
            int(field("stride", "1")),
            int(field("pad", "0_0").split("_")[0]),
            int(field("lhs_dilate", "1")),
            int(field("rhs_dilate", "1")),
        )
    return 2.0 * products


@functools.cache
def _overlaps(size, kernel, output, stride, pad, dilation, kernel_dilation) -> int:
    """Pairs of an output and a kernel position that meet an input, not padding or a gap."""
    place = np.arange(output)[:, None] * stride + np.arange(kernel) * kernel_dilation - pad
    inside = (place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)
    return int(inside.sum())


def _variation(op: _Instruction, inputs: list):
    """Whether a result changes from turn to turn, given that of its operands."""
    if op.opcode == "tuple":
        return inputs
    if op.opcode == "get-tuple-element" and isinstance(inputs[0], list):
        return inputs[0][op.number("index")]
    return any(_any(x) for x in inputs)


def _any(varies) -> bool:
    return any(map(_any, varies)) if isinstance(varies, list) else bool(varies)


def _is_element(body: _Computation, name: str, parameter: str, index: int) -> bool:
    """Whether the value `name` of a loop's body is its own element `index`, unchanged."""
    op = body.instructions[name]
    while op.opcode in ("copy", "bitcast"):
        op = body.instructions[op.operands[0]]
    element = op.opcode == "get-tuple-element" and op.operands[0] == parameter
    return element and op.number("index") == index


def _of(op: _Instruction, computation: _Computation) -> list[_Instruction]:
    return [computation.instructions[x] for x in op.operands if x in computation.instructions]


def _size(arrays: Sequence[_Array], main: bool = False) -> int:
    return sum(x.bytes for x in arrays if x.main or not main)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """The computations of a module by name, and which is the entry."""
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line == "}" and name is not None:
            computations[name], name = _computation(lines), None
        elif name is not None:
            lines.append(line)
    require(entry is not None, "This text is no HLO module: it has no ENTRY computation.")
    return computations, entry


def _computation(lines: list[str]) -> _Computation:
    instructions, root = {}, None
    for line in lines:
        start = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
        if not start:
            continue
        rest = line[start.end() :]
        end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
        shape, rest = rest[:end], rest[end:].strip()
        opcode, text = rest[: rest.index("(")], rest[rest.index("(") :]
        operands = re.findall(r"%([\w.\-]+)", text[: _closing(text, 0)])
        arrays = tuple(_arrays(shape))
        op = _Instruction(start[2], arrays, shape.startswith("("), opcode, tuple(operands), text)
        instructions[op.name] = op
        root = op.name if start[1] else root
    return _Computation(instructions, root or op.name)


def _arrays(shape: str) -> Iterator[_Array]:
    for kind, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        bits = _BITS.get(kind, 8)  # the narrow floats have 8
        yield _Array(tuple(int(d) for d in dims.split(",") if d), bits, "S(" not in layout)


def _closing(text: str, start: int) -> int:
    """Just behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError("This text is no HLO: a parenthesis is not closed.")

"""Several processes

Processes that work on one text start together, tell each other what they were
called with, exchange tensors in an order that cannot deadlock, and end together.

Written by `book/tools/ranks.ipynb`: read and change it there.
"""

import json
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import chain
from multiprocessing.connection import wait
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attention.tools.checks import (
    are_whole,
    check_bias,
    check_fit,
    check_sizes,
    is_number,
    scale_queries,
    spread,
    unified,
    wants_gradient,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "Fitted",
    "agree",
    "check_documents",
    "exchange",
    "fit_call",
    "from_all",
    "place_in",
    "post",
    "run_ranks",
]


_LONGEST = 1e6  # seconds; the system counts milliseconds, in 32 bits


def run_ranks(
    function: Callable, ranks: int, *arguments: object, seconds: float | int = 60
) -> list:
    """What `function(*arguments)` returns in each of `ranks` new processes.

    They form a group of torch.distributed on this machine (gloo), with one thread each;
    `torch.distributed.get_rank()` tells them apart. Results come back pickled, by rank.
    RuntimeError, in one sentence, if a rank fails or is not ready in time; none is left
    running. Processes are forked where that is safe, and then `function` may be one of
    a notebook; otherwise it must be importable. ValueError for what cannot be called,
    fewer ranks than 1, and seconds that are not above 0, or above a million.
    """
    check_sizes(ranks=ranks)
    if not callable(function):
        raise expected("function", "a callable", repr(function))
    if not is_number(seconds) or not 0 < seconds <= _LONGEST:
        must = f"a number above 0, up to {_LONGEST:.0f}"
        raise expected("seconds", must, repr(seconds))
    safe = sys.platform == "linux" and not torch.cuda.is_initialized()
    context, team = multiprocessing.get_context("fork" if safe else "spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(ranks):
                given = f"{folder}/store", seconds, function, arguments
                team.append(_Member(context, rank, ranks, *given))
            return _results(team, seconds)
        finally:
            for member in team:
                member.end()


class _Member:
    """One process of a team, and the pipe through which its answer comes."""

    def __init__(self, context, rank, ranks, *given):
        self.name, self.answer = f"rank {rank} of {ranks}", None
        self.pipe, theirs = context.Pipe(duplex=False)
        given = (theirs, rank, ranks, *given)
        self.process = context.Process(target=_work, args=given, daemon=True)
        self.process.start()
        theirs.close()

    def listen(self) -> None:
        """Take its answer: a result and None, or None and what went wrong."""
        try:
            self.answer = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self.process.join(5)
            code = self.process.exitcode
            how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
            self.answer = None, f"ended with {how}"

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe, rank, ranks, store, seconds, function, arguments) -> None:
    """What a process does: join the group, call, send what came out, and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # 127.0.0.1
    try:
        limit = timedelta(seconds=0.8 * seconds)  # in time to say who is missing
        joined = {"rank": rank, "world_size": ranks, "timeout": limit}
        dist.init_process_group("gloo", init_method=f"file://{store}", **joined)
        dist.barrier()  # or one could end while others are still joining
        answer = pickle.dumps((function(*arguments), None))
    except BaseException as error:
        answer = pickle.dumps((None, f"{type(error).__name__}: {error}"))
    pipe.send_bytes(answer)
    pipe.close()
    os._exit(0)  # what the parent does at its end is not for this process


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


_GRACE = 0.5  # seconds


def _results(team: list[_Member], seconds: float | int) -> list:
    """All answers; RuntimeError for the first that is a failure, or missing."""
    deadline = time.monotonic() + seconds
    while missing := _listen(team, deadline):
        if failed := _failed(team):
            raise RuntimeError(_first_cause(failed, team))
        if time.monotonic() >= deadline:
            names = ", ".join(member.name for member in missing)
            raise RuntimeError(f"{names}: expected a result in {seconds} s, got none")
    if failed := _failed(team):
        raise RuntimeError(_first_cause(failed, team))
    return [member.answer[0] for member in team]


def _listen(team: list[_Member], deadline: float) -> list[_Member]:
    """Take the answers that are there, or the next; who is missing then."""
    waiting = {m.pipe: m for m in team if m.answer is None}
    for pipe in wait(list(waiting), max(deadline - time.monotonic(), 0)):
        waiting[pipe].listen()
    return [member for member in team if member.answer is None]


def _failed(team: list[_Member]) -> list[_Member]:
    return [m for m in team if m.answer is not None and m.answer[1] is not None]


def _first_cause(failed: list[_Member], team: list[_Member]) -> str:
    """A sentence about what failed first."""
    until = time.monotonic() + _GRACE
    while len(failed) < len(team) and time.monotonic() < until:
        _listen(team, until)
        failed = _failed(team)

    def consequence(member: _Member) -> int:
        _, why = member.answer
        return 0 if why.startswith("ended with") else 1 + bool(_PASSED_ON.search(why))

    cause = min(failed, key=consequence)
    return f"{cause.name}: {cause.answer[1]}"


_LOST = "got no answer from rank"
_BROKEN = "reset by peer|closed by peer|closure|[Bb]roken pipe|[Tt]imed out"
_PASSED_ON = re.compile(f"{_LOST}|gloo/.*({_BROKEN})")


def place_in(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This rank's number in its group, and how many there are; 0 and 1 alone.

    ValueError for what is not a group, or one that this process does not belong to.
    """
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    if group is not None and not isinstance(group, dist.ProcessGroup):
        must = "None, or a group of torch.distributed that this process belongs to"
        raise expected("group", must, repr(group))
    return dist.get_rank(group), dist.get_world_size(group)


def post(
    outgoing: dict[int, Sequence[Tensor]],
    incoming: dict[int, Sequence[Tensor]],
    group: dist.ProcessGroup | None,
) -> Callable[[], None]:
    """Post what goes to each rank and comes from each; the result waits for all.

    Tensors must be contiguous; booleans travel as bytes. What a rank has for itself,
    and what is empty, stays where it is. RuntimeError, when waiting, names the ranks
    that do not answer.
    """
    rank, ranks = place_in(group)
    transfers, peers = [], []
    for step in range(1, ranks):
        for how, tensors, peer in (
            (dist.isend, outgoing, (rank + step) % ranks),
            (dist.irecv, incoming, (rank - step) % ranks),
        ):
            known = peer if group is None else dist.get_global_rank(group, peer)
            for tensor in filter(Tensor.numel, tensors.get(peer, ())):
                if tensor.dtype == torch.bool:  # which cannot be sent
                    tensor = tensor.view(torch.uint8)
                transfers.append(dist.P2POp(how, tensor, known, group))
                peers.append({peer})
    works = _started(transfers, group)
    if len(works) < len(peers):  # NCCL may make one of all
        peers = [set().union(*peers)] * len(works)
    return lambda: _wait(works, peers, ranks, transfers)


def _started(transfers: list[dist.P2POp], group) -> list:
    """What can be waited for; in its place an error, where a rank is known to be gone.

    NCCL must get all at once, and gloo may get them one by one.
    """
    if transfers and dist.get_backend(group) != "gloo":
        return dist.batch_isend_irecv(transfers)
    works = []
    for each in transfers:
        try:
            works.append(each.op(each.tensor, each.peer, each.group))
        except RuntimeError as error:
            works.append(error)
    return works


def _wait(works, peers, ranks, transfers) -> None:
    """Wait for all, and name those who do not answer."""
    lost, why = set(), None
    for work, some in zip(works, peers, strict=True):
        try:
            if isinstance(work, RuntimeError):
                raise work
            work.wait()
        except RuntimeError as error:
            lost, why = lost | some, error
    works.clear(), transfers.clear()  # until now they kept what was sent
    if lost:
        names = ", ".join(map(str, sorted(lost)))
        raise RuntimeError(f"group: expected {ranks} ranks, {_LOST} {names}") from why


def exchange(
    tensors: Sequence[Sequence[Tensor]],
    shapes: Sequence[Sequence[tuple[int, ...]]],
    group: dist.ProcessGroup | None,
) -> Callable[[], list[list[Tensor]]]:
    """Post `tensors[r]` to each rank r; the result waits for as many from each.

    Those of rank r have `shapes[r]`. What a rank has for itself it gets as it is, not
    copied. Nothing here has a gradient.
    """
    rank, _ranks = place_in(group)
    leaving = [[tensor.contiguous() for tensor in some] for some in tensors]
    coming = [
        [like.new_empty(shape) for like, shape in zip(leaving[0], some, strict=True)]
        for some in shapes
    ]
    arrive = post(dict(enumerate(leaving)), dict(enumerate(coming)), group)
    coming[rank] = leaving[rank]

    def received() -> list[list[Tensor]]:
        arrive()
        found = coming.copy()
        coming.clear()  # the caller alone keeps what came
        return found

    return received


def from_all(
    tensor: Tensor, dim: int, lengths: Sequence[int], group: dist.ProcessGroup | None
) -> list[Tensor]:
    """All ranks' tensors, `lengths` along `dim`; this one's is `tensor` itself."""
    shapes = [list(tensor.shape) for _ in lengths]
    for shape, length in zip(shapes, lengths, strict=True):
        shape[dim] = length
    parts, own = [tensor.new_empty(shape) for shape in shapes], tensor.detach()
    coming = {peer: [part] for peer, part in enumerate(parts)}
    post({peer: [own.contiguous()] for peer in coming}, coming, group)()
    parts[place_in(group)[0]] = tensor
    return parts


_MESSAGE = 4096  # bytes


def agree(find: Callable[[], dict], group: dist.ProcessGroup | None) -> list[dict]:
    """What `find` says on each rank; ValueError on every rank if that does not fit.

    An error of `find` is raised where it arose, and reported to the others. Facts must
    be equal, except for those whose name begins with "_".
    """
    rank, ranks = place_in(group)
    if ranks == 1:
        return [find()]
    try:
        own, refusal = _written(find()), None
    except Exception as error:  # of whatever kind: the others are waiting
        own, refusal = _written({"refused": str(error)[:1000]}), error
    messages = _messages(own, rank, ranks, group)
    each = {peer: [message] for peer, message in enumerate(messages)}
    post({peer: [messages[rank]] for peer in each}, each, group)()
    if refusal is not None:
        raise refusal
    told = [json.loads(bytes(message.tolist()).rstrip(b"\0")) for message in messages]
    for peer, theirs in enumerate(told):
        if "refused" in theirs:
            raise ValueError(f"on rank {peer} of {ranks}: {theirs['refused']}")
    for name in dict.fromkeys(chain(*told)):
        values = [theirs.get(name) for theirs in told]
        if not name.startswith("_") and values != values[:1] * ranks:
            got = ", ".join(f"{value} on rank {r}" for r, value in enumerate(values))
            raise expected(name, "the same on all ranks", got)
    return told


def _written(facts: dict) -> bytes:
    """Facts as a message; ValueError for what is no text, number or list of them."""
    own = json.dumps(facts, ensure_ascii=False, default=_plain).encode(errors="replace")
    if len(own) > _MESSAGE:
        must = f"expected facts of at most {_MESSAGE} bytes, got {len(own)}"
        own = json.dumps({"refused": must}).encode()
    return own


def _plain(fact: object) -> float | int:
    """Python's own number for one of NumPy, or in a tensor."""
    try:
        number = fact.item()
    except (AttributeError, RuntimeError, ValueError):
        number = None
    if not isinstance(number, float | int):
        raise expected("facts", "words and numbers", type(fact).__name__)
    return number


def _messages(own: bytes, rank: int, ranks: int, group) -> list[Tensor]:
    """Room for a message from each rank, with this one's own in its place."""
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    messages = list(torch.zeros(ranks, _MESSAGE, dtype=torch.uint8, device=device))
    messages[rank][: len(own)] = torch.tensor(list(own), dtype=torch.uint8)
    return messages


class Fitted(NamedTuple):
    """The tensors of a call on one rank, with equal axes in front."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor | None
    mask: Tensor | None
    documents: Tensor | None
    shape: tuple[int, ...]  # of the context, but for its width, as it was asked for
    scale: float


def fit_call(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scale: float | Tensor | None,
    bias: Tensor | None,
    window: int | None,
    documents: Tensor | None,
) -> tuple[dict, Fitted]:
    """The facts of a call of attention on this rank, for `agree`, and its tensors.

    Columns of `mask` and `bias` are not checked. ValueError for what does not fit.
    """
    learns = [wants_gradient(tensor) for tensor in (queries, keys, values, bias)]
    queries, keys, values = unified(queries, keys, values)
    shape = check_fit(queries, keys, values)
    axes = shape[:-2] or (1,)
    facts = {"dtype": str(queries.dtype), "device": queries.device.type}
    facts |= {"causal": causal, "window": window, "_queries": shape[-2]}
    facts |= {"_keys": shape[-1], _WANTED: learns}
    facts["scale"] = "a tensor" if isinstance(scale, Tensor) else scale
    bias = _fit_table("bias", bias, shape, queries, facts)
    mask = _fit_table("mask", mask, shape, queries, facts)
    queries, scale = scale_queries(queries, scale)
    scale = float(scale)  # here, since a large int would overflow between transfers
    three = [
        tensor if tensor.ndim > 2 else tensor.unsqueeze(0)
        for tensor in (queries, keys, values)
    ]
    three = [tensor.expand(*axes[:-1], *tensor.shape[-3:]) for tensor in three]
    three[0] = three[0].expand(*axes, *three[0].shape[-2:])
    for name, tensor in zip(("queries", "keys", "values"), three, strict=True):
        sizes = [*tensor.shape[:-2], tensor.shape[-1]]
        facts[f"sizes of {name} but for the length"] = sizes
    if documents is not None:
        documents = check_documents(documents, shape)
        facts["sizes of documents but for the length"] = list(documents.shape[:-1])
    return facts, Fitted(*three, bias, mask, documents, shape[:-1], scale)


_WANTED = "requires_grad of queries, keys, values and bias"


def _fit_table(name, table, shape, queries, facts) -> Tensor | None:
    """A bias or mask with a row for each query, and as many axes as the scores."""
    if table is None:
        return None
    check_tensor(**{name: table})
    columns = table.shape[-1] if table.ndim else 1
    shape = (*shape[:-1], columns)
    if name == "bias":
        table = check_bias(table, shape, queries)
    else:
        if table.dtype != torch.bool or table.device != queries.device:
            must = f"booleans (True: may see) on {queries.device}"
            raise expected("mask", must, table)
        table = spread("mask", table, shape)
    axes = max(len(shape), 3)
    table = table[(None,) * (axes - table.ndim)]
    facts[f"sizes of {name}, rows and columns aside"] = list(table.shape[:-2])
    facts[f"_{name}"] = columns
    return table


def check_documents(documents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """In 64 bits; ValueError unless there is a whole number for each token."""
    check_tensor(documents=documents)
    batch, length = shape[:-3], shape[-1]
    if shape[-2] != length:
        got = f"{shape[-2]} queries and {length} keys"
        raise expected("documents", "as many queries as keys beside them", got)
    fits = tuple(documents.shape) in {(length,), (*batch, length)}
    if not fits or not are_whole(documents):
        must = f"whole numbers {(*batch, length)}, one for each token"
        raise expected("documents", must, documents)
    return documents.long()

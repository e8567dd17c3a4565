"""A small GPT

A GPT of one million parameters, built from our layer and trained on a dictionary:
tokens, batches, loss, learning rate, checkpoints, and variants of attention at an
equal budget.

Written by `book/training/small_gpt.ipynb`: read and change it there.
"""

import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from attention.core.layer import Attention, Cache, causal, positions_of, set_back
from attention.core.layer import window as within
from attention.position.absolute import LearnedPositions
from attention.position.relative import alibi
from attention.position.rotary import Rotary
from attention.reading.language_model import (
    Block,
    caches_of,
    id_list,
    through,
    weights_through,
)
from attention.reading.translator import check_ids
from attention.tools.checks import (
    are_whole,
    check_counts,
    check_heads,
    check_sizes,
    own_number,
    readable,
)
from attention.tools.layouts import check_tensors
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "GPT",
    "Characters",
    "Muon",
    "Recipe",
    "Training",
    "attention_slots",
    "batch_at",
    "gpt_block",
    "held_out_loss",
    "keep",
    "learning_rate",
    "learnt_and_held_out",
    "load_corpus",
    "orthogonalised",
    "put_back",
    "read_checkpoint",
    "resume",
    "save_checkpoint",
    "state_of",
    "text_loss",
    "train",
]


_CORPUS = "book/_data/devils_dictionary.txt"


def load_corpus(path: str | Path | None = None) -> str:
    """*The Devil's Dictionary* as one text, or the text in the file at `path`.

    The dictionary lies in a clone of this book, not in what pip installs: there it is a
    FileNotFoundError.
    """
    if path is None:
        path = Path(find_spec("attention").origin).parents[1] / _CORPUS
        if not path.is_file():
            how = "load_corpus(path) reads any text in UTF-8"
            raise FileNotFoundError(f"{_CORPUS} is in a clone of the book alone; {how}")
    return Path(path).read_text(encoding="utf-8")


class Characters:
    """Tokens that are characters: each different one of a text has a number."""

    def __init__(self, text: str) -> None:
        self.characters = "".join(sorted(set(text)))
        self._numbers = {letter: n for n, letter in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The number of each character; ValueError for one that has none."""
        if unknown := sorted(set(text) - set(self.characters)):
            raise expected("text", f"only {self.characters!r}", repr(unknown[0]))
        return [self._numbers[letter] for letter in text]

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The characters of these numbers; ValueError for one that has none."""
        return "".join(self.characters[number] for number in id_list(ids, len(self)))


def learnt_and_held_out(ids: Integer[Tensor, " all"]) -> tuple[Tensor, Tensor]:
    """The first nine tenths, to learn from, and the last tenth, which is held out.

    ValueError unless this is one text, of whole numbers.
    """
    _check_text(ids)
    cut = 9 * len(ids) // 10
    return ids[:cut], ids[cut:]


def _check_text(ids: Tensor, least: int = 0) -> None:
    """ValueError unless this is one text of so many tokens, or more."""
    check_tensor(ids=ids)
    if ids.ndim != 1 or not are_whole(ids):
        raise expected("ids", "whole numbers (length,), one text", ids)
    if len(ids) < least:
        raise expected("ids", f"at least {least} tokens", len(ids))


def batch_at(
    step: int, ids: Integer[Tensor, " all"], count: int, length: int, *, seed: int = 0
) -> tuple[Integer[Tensor, "{count} {length}"], Integer[Tensor, "{count} {length}"]]:
    """Pieces of the text for this step, and their targets: the same, one token on.

    In each round through the text, pieces begin elsewhere, come in a random order, and
    each is read once. Everything follows from `seed` and `step`. ValueError for a text
    too short for one batch, and for what is no step.
    """
    (step,) = check_counts(step=step)
    count, length = check_sizes(count=count, length=length)
    _check_text(ids, (count + 1) * length)
    in_a_round = (len(ids) - length) // length // count
    rounds, turn = divmod(step, in_a_round)
    seed = (1_000_003 * own_number(seed) + rounds) % 2**64
    random = torch.Generator().manual_seed(seed)
    drawn = {"generator": random, "device": "cpu"}
    start = torch.randint(length, (), **drawn)
    order = torch.randperm(in_a_round * count, **drawn)
    starts = start + length * order[turn * count : (turn + 1) * count]
    pieces = ids[starts[:, None] + torch.arange(length + 1, device="cpu")]
    return pieces[:, :-1], pieces[:, 1:]


def gpt_block(attention: Attention, *, bias: bool = False) -> Block:
    """A `Block` with layer norms, and a network four times as wide as its vectors.

    Radford et al. 2019, section 2.3; companion, 4.5.
    """
    d = attention.d_in
    wide, narrow = nn.Linear(d, 4 * d, bias), nn.Linear(4 * d, d, bias)
    mlp = nn.Sequential(wide, nn.GELU(approximate="tanh"), narrow)
    return Block(attention, mlp, partial(nn.LayerNorm, d, bias=bias))


_POSITIONS = ("rotary", "learned", "alibi", "none")


def attention_slots(
    num_heads: int, head_dim: int, positions: str, window: int | None
) -> dict[str, Any]:
    """What goes into the slots of `Attention` for these positions and this window."""
    slots: dict[str, Any] = {"masks": (causal if window is None else within(window),)}
    if positions == "rotary":
        slots["process_heads"] = Rotary(head_dim)
    if positions == "alibi":
        slots["bias"] = alibi(num_heads)
    return slots


class GPT(nn.Module):
    """A GPT: ids (*batch, length) to logits (*batch, length, vocabulary).

    Blocks around our `Attention`, between an embedding and the same matrix again. The
    variants are arguments: `num_heads`, `num_kv_heads`, `window`, and `positions`, one
    of rotary, learned, alibi and none; `context_length` limits the learned ones. With
    bias=True and learned positions it is GPT-2. Radford et al. 2019; companion,
    chapter 4. ValueError for what does not fit.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        d: int = 128,
        num_blocks: int = 5,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        window: int | None = None,
        positions: str = "rotary",
        context_length: int = 128,
        bias: bool = False,
    ) -> None:
        super().__init__()
        vocabulary, d = check_sizes(vocabulary=vocabulary, d=d)
        (num_blocks,) = check_sizes(num_blocks=num_blocks)
        (context_length,) = check_sizes(context_length=context_length)
        d, num_heads = check_heads(d, num_heads)
        if positions not in _POSITIONS:
            raise expected("positions", f"one of {', '.join(_POSITIONS)}", positions)
        self.embedding, self.places = nn.Embedding(vocabulary, d), None
        if positions == "learned":
            self.places = LearnedPositions(context_length, d)
        given = {"num_kv_heads": num_kv_heads, "qkv_bias": bias, "out_bias": bias}
        given |= attention_slots(num_heads, d // num_heads, positions, window)
        layers = (Attention(d, d, num_heads, **given) for _ in range(num_blocks))
        self.blocks = nn.ModuleList(gpt_block(layer, bias=bias) for layer in layers)
        self.norm = nn.LayerNorm(d, bias=bias)
        self._begin()

    def forward(
        self,
        ids: Int[Tensor, "*batch length"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "*batch length vocabulary"]:
        """Logits of the next token at each place; extends `caches`, one for a block."""
        caches = caches_of(caches, len(self.blocks))
        x = self._embedded(ids, positions, caches[0])
        with set_back(*caches):
            x = through(self.blocks, x, mask, positions, caches)
            return F.linear(self.norm(x), self.embedding.weight)

    def attention_weights(
        self,
        ids: Int[Tensor, "*batch length"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> tuple[Float[Tensor, "*batch heads length num_keys"], ...]:
        """The weights that `forward` uses, a tensor for each block; caches stay."""
        caches = caches_of(caches, len(self.blocks))
        x = self._embedded(ids, positions, caches[0])
        return weights_through(self.blocks, x, mask, positions, caches)

    def _embedded(self, ids, positions, cache) -> Tensor:
        table = self.embedding.weight
        check_ids(ids, len(table), device=table.device)
        x = self.embedding(ids)
        if self.places is None:
            return x
        return self.places(x, positions_of(x, positions, cache))

    def _begin(self) -> None:
        """Small random weights, and smaller ones where blocks add to the tokens."""
        for name, weights in self.named_parameters():
            deep = name.endswith(("out_proj.weight", "mlp.2.weight"))
            shrink = math.sqrt(2 * len(self.blocks)) if deep else 1.0
            if weights.ndim == 2:
                nn.init.normal_(weights, std=0.02 / shrink)
            elif name.endswith("bias"):
                nn.init.zeros_(weights)


def text_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
    """The mean of −log of the probability that each target was given.

    ValueError unless there is a target, a token, for each place of the inputs.
    """
    logits = model(inputs)
    targets = _check_targets(targets, logits)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def _check_targets(targets: Tensor, logits: Tensor) -> Tensor:
    """In 64 bits; in eight, a vocabulary of 300 would count as 44."""
    check_tensor(targets=targets, **{"model(inputs)": logits})
    if logits.ndim < 2 or not logits.is_floating_point():
        raise expected("model(inputs)", "floats (..., length, vocabulary)", logits)
    (*places, vocabulary), device = logits.shape, logits.device
    alike = (*targets.shape,) == (*places,) and targets.device == device
    if not alike or not targets.numel() or not are_whole(targets):
        must = f"whole numbers {(*places,)} on {device}, at least one"
        raise expected("targets", must, targets)
    targets = targets.long()
    if readable(targets) and not 0 <= targets.min() <= targets.max() < vocabulary:
        got = f"{targets.min()} to {targets.max()}"
        raise expected("targets", f"from 0 to {vocabulary - 1}", got)
    return targets


@torch.no_grad()
def held_out_loss(model: nn.Module, ids: Int[Tensor, " all"], length: int) -> float:
    """The loss of a text, read in whole pieces of `length`, each without a past.

    The last tokens, which fill no piece and are fewer than `length`, are left out.

    ValueError for a length below 1, and unless the text is longer, of whole numbers.
    """
    (length,) = check_sizes(length=length)
    _check_text(ids, length + 1)
    whole = (len(ids) - 1) // length * length
    inputs, targets = (ids[at : at + whole].view(-1, length) for at in (0, 1))
    batches = zip(inputs.split(32), targets.split(32), strict=True)
    losses = [len(batch[0]) * text_loss(model, *batch) for batch in batches]
    return sum(losses).item() / len(inputs)


def learning_rate(step: int, steps: int, warm_up: int) -> float:
    """A share of the highest rate: up on a line, then down on half a cosine to 0."""
    if step < warm_up:
        return (step + 1) / warm_up
    way = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return (1 + math.cos(math.pi * way)) / 2


def orthogonalised(
    matrices: Float[Tensor, "several rows columns"],
) -> Float[Tensor, "several rows columns"]:
    """Each matrix with its singular values all brought near 1. Jordan et al. 2024."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Moves each matrix by its mean gradient, orthogonalised: in all directions alike.

    For matrices inside a network alone. Jordan et al. 2024. ValueError for a tensor of
    another number of axes than two.
    """

    def __init__(self, matrices: Sequence[Tensor], weight_decay: float = 0.1) -> None:
        super().__init__(matrices, {"lr": 0.02, "weight_decay": weight_decay})

    def add_param_group(self, group: dict) -> None:
        """More matrices; ValueError for what is none."""
        super().add_param_group(group)
        for matrix in group["params"]:
            if matrix.ndim != 2:
                self.param_groups.pop()
                raise expected("matrices", "floats of two axes", matrix)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step, by the gradients that the matrices hold; one without any stays.

        A `closure` makes the gradients first; the loss that it returns is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group)
        return loss

    def _step(self, group: dict) -> None:
        alike: dict[tuple, list[Tensor]] = {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                alike.setdefault(tuple(matrix.shape), []).append(matrix)
        rate, decay = group["lr"], group["weight_decay"]
        for (rows, columns), matrices in alike.items():
            means = torch.stack([self._mean(matrix) for matrix in matrices])
            size = rate * max(1.0, rows / columns) ** 0.5
            for matrix, move in zip(matrices, orthogonalised(means), strict=True):
                matrix.mul_(1 - rate * decay).sub_(move, alpha=size)

    def _mean(self, matrix: Tensor) -> Tensor:
        """The mean gradient, over about twenty steps; the newest counts once more."""
        mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 0.05)
        return matrix.grad.lerp(mean, 0.95)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run but the text: equal recipes give equal losses.

    `model` are options of `GPT`; the rates are the highest ones, of AdamW and of Muon.
    """

    steps: int = 1500
    count: int = 8
    length: int = 128
    warm_up: int = 50
    rate: float = 2e-3
    matrix_rate: float = 0.02
    weight_decay: float = 0.1
    look_every: int = 100
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)


class Training:
    """A training run, which can be stopped after any step, saved, and resumed.

    `losses` has a number for each step; `looks` has step, held-out loss and CPU seconds
    of training for each time that `look` was called; `text_sum` is the text's SHA-256.
    """

    def __init__(self, text: str, recipe: Recipe) -> None:
        self.recipe, self.tokenizer = recipe, Characters(text)
        content = text.encode("utf-8", "surrogatepass")
        self.text_sum = hashlib.sha256(content).hexdigest()
        ids = torch.tensor(self.tokenizer.encode(text))
        self.ids, self.held_out = learnt_and_held_out(ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = GPT(len(self.tokenizer), **recipe.model)
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        inside = {id(matrix) for matrix in matrices}
        others = [p for p in self.model.parameters() if id(p) not in inside]
        self.muon = Muon(matrices, recipe.weight_decay)
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
        self.losses: list[float] = []
        self.looks: list[tuple[int, float, float]] = []
        self.seconds = 0.0

    def step(self) -> float:
        """Read a batch and change the weights a little; the loss before the change."""
        start, step, recipe = time.process_time(), len(self.losses), self.recipe
        share = learning_rate(step, recipe.steps, recipe.warm_up)
        batch = batch_at(step, self.ids, recipe.count, recipe.length, seed=recipe.seed)
        loss = text_loss(self.model, *batch)
        self.model.zero_grad()
        loss.backward()
        rates = (self.muon, recipe.matrix_rate), (self.adam, recipe.rate)
        for optimiser, highest in rates:
            optimiser.param_groups[0]["lr"] = share * highest
            optimiser.step()
        self.losses.append(loss.item())
        self.seconds += time.process_time() - start
        return self.losses[-1]

    def look(self) -> float:
        """The held-out loss now."""
        loss = held_out_loss(self.model, self.held_out, self.recipe.length)
        self.looks.append((len(self.losses), loss, self.seconds))
        return loss


def train(training: Training, folder: Path | None = None) -> Iterator[int]:
    """Take the steps that are left, and give the number of those taken after each.

    Every `look_every` steps, and at the end, it looks at the held-out loss and keeps a
    checkpoint in `folder`, if there is one.
    """
    steps, look_every = training.recipe.steps, training.recipe.look_every
    for step in range(len(training.losses) + 1, steps + 1):
        training.step()
        if step % look_every == 0 or step == steps:
            training.look()
            if folder is not None:
                keep(training, folder)
        yield step


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a file that is whole or is not there at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What was saved; ValueError if a bit of the file is not as it was written."""
    held = path.read_bytes()
    digest, content = held[:32], held[32:]
    if hashlib.sha256(content).digest() != digest:
        must, got = "a file as it was written", f"{len(held)} bytes with another sum"
        raise expected(path.name, must, got)
    return torch.load(io.BytesIO(content), weights_only=True)


_KEPT = ("model", "muon", "adam")


def state_of(training: Training) -> dict[str, Any]:
    """Everything that a training run needs to go on."""
    state = {name: getattr(training, name).state_dict() for name in _KEPT}
    counts = {"losses": training.losses, "looks": training.looks}
    facts = {"recipe": asdict(training.recipe), "text": training.text_sum}
    return state | counts | {"seconds": training.seconds} | facts


def put_back(training: Training, state: dict[str, Any]) -> None:
    """Go on from this state; ValueError if it comes from another recipe or text.

    A state that holds no sum of its text, as older ones, is judged by its shapes alone.
    """
    recipe = state.get("recipe", {})
    for name, mine in asdict(training.recipe).items():
        if mine != recipe.get(name):
            raise expected(f"recipe.{name}", mine, recipe.get(name))
    if state.get("text", training.text_sum) != training.text_sum:
        raise expected("text", "the one that this state has learnt from", "another one")
    own = training.model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    check_tensors("a model of this text", shapes, state["model"])
    for name in _KEPT:
        getattr(training, name).load_state_dict(state[name])
    training.losses, training.seconds = list(state["losses"]), state["seconds"]
    training.looks = [tuple(look) for look in state["looks"]]


def keep(training: Training, folder: Path) -> None:
    """Save the training; keep this checkpoint, the one before, and the best."""
    folder.mkdir(parents=True, exist_ok=True)
    state, (step, loss, _) = state_of(training), training.looks[-1]
    save_checkpoint(folder / f"step-{step:06}.checkpoint", state)
    for old in _checkpoints(folder)[:-2]:
        old.unlink()
    if loss == min(each[1] for each in training.looks):
        save_checkpoint(folder / "best.checkpoint", state)


def _checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, the oldest first: of two numbers, the longer is the larger."""
    found = folder.glob("step-*.checkpoint")
    return sorted(found, key=lambda path: (len(path.name), path.name))


def resume(training: Training, folder: Path) -> list[str]:
    """Go on from the newest checkpoint that is whole; a sentence for each refused."""
    refused = []
    for path in reversed(_checkpoints(folder)):
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            refused.append(f"{error}; the one before it is used, if there is one")
            continue
        put_back(training, state)
        break
    return refused

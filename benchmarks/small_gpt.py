"""Train the book's small GPT beside nanoGPT's, for the same CPU seconds each.

    python benchmarks/small_gpt.py               300 seconds each; writes .md and .csv
    python benchmarks/small_gpt.py --budget 60   less of all
    python benchmarks/small_gpt.py --quick       a look; prints, writes nothing

One process and one thread. All take turns, some seconds each, so that whatever else the
machine does hits them alike. The seconds are of training alone; before it, a few steps
are timed, and the learning rates fall to their ends with the steps that fit.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import Row, progress, say
from harness import machine
from torch import Tensor, nn
from torch.nn import functional as F

from attention.training.small_gpt import (
    Characters,
    Recipe,
    Training,
    held_out_loss,
    learnt_and_held_out,
    load_corpus,
)

OURS, PEER, PEER_AS_LARGE = "ours", "nanoGPT", "nanoGPT, our sizes"
SHORT = 64  # all are judged in pieces of so many characters, too
GOAL = 2.0
TURN = 3.0  # seconds of a turn
COLUMNS = ["contender", "parameters", "context", "batch", "steps", "cpu_seconds"]
COLUMNS += ["held_out", "held_out_short", "to_goal"]
HERE = Path(__file__).parent


class PeerBlock(nn.Module):
    """nanoGPT's block: norm, attention in one projection, norm, MLP; no biases."""

    def __init__(self, d: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.first, self.second = (nn.LayerNorm(d, bias=False) for _ in range(2))
        self.qkv, self.out = (nn.Linear(d, n * d, bias=False) for n in (3, 1))
        self.wide = nn.Linear(d, 4 * d, bias=False)
        self.narrow = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        three = self.qkv(self.first(x)).chunk(3, dim=-1)
        heads = (e.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for e in three)
        seen = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))


class PeerGPT(nn.Module):
    """nanoGPT's model, written again: learned positions, tied embedding, GELU."""

    def __init__(
        self, vocabulary: int, d: int, blocks: int, num_heads: int, context: int
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, d), nn.Embedding(context, d)
        self.blocks = nn.Sequential(*(PeerBlock(d, num_heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(d, bias=False)
        for name, weights in self.named_parameters():
            deep = name.endswith(("out.weight", "narrow.weight"))
            if weights.ndim == 2:
                std = 0.02 / (math.sqrt(2 * blocks) if deep else 1)
                nn.init.normal_(weights, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[-1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


class PeerTraining:
    """nanoGPT's loop: AdamW, 100 steps of warm-up, then a cosine from 1e-3 to 1e-4."""

    def __init__(self, text: str, blocks: int, context: int, count: int) -> None:
        self.context, self.count, self.steps = context, count, 1
        tokenizer = Characters(text)
        self.ids, _ = learnt_and_held_out(torch.tensor(tokenizer.encode(text)))
        torch.manual_seed(0)
        self.model = PeerGPT(len(tokenizer), 128, blocks, 4, context)
        decayed = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        groups = [
            {"params": decayed, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
        self.random, self.done = torch.Generator().manual_seed(0), 0

    def step(self) -> None:
        for group in self.adam.param_groups:
            group["lr"] = peer_rate(self.done, self.steps)
        last = len(self.ids) - self.context
        starts = torch.randint(last, (self.count, 1), generator=self.random)
        pieces = self.ids[starts + torch.arange(self.context + 1)]
        logits = self.model(pieces[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        self.done += 1


def peer_rate(step: int, steps: int) -> float:
    """nanoGPT's learning rate; in a short run the warm-up is a tenth of it."""
    warm_up = min(100, steps // 10)
    if step < warm_up:
        return 1e-3 * step / warm_up
    way = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return 1e-4 + (1 + math.cos(math.pi * way)) / 2 * 9e-4


@dataclass
class Contender:
    """One that trains: how it begins, with how many steps, and what it has reached."""

    name: str
    begin: Callable[[int], Training | PeerTraining]  # of the number of steps
    context: int
    count: int
    training: Training | PeerTraining | None = None
    steps: int = 0
    done: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)

    def prepare(self, budget: float) -> None:
        """Begin with as many steps as the budget has room for."""
        trial = self.begin(1000)
        for _ in range(3):
            trial.step()
        start, tried = time.process_time(), max(3, min(20, round(budget / 10)))
        for _ in range(tried):
            trial.step()
        once = (time.process_time() - start) / tried
        self.steps = max(1, int(0.97 * budget / once))
        self.training = self.begin(self.steps)

    def turn(self, budget: float) -> None:
        """Train for some seconds, unless all is done or the budget is spent."""
        start = time.process_time()
        while self.done < self.steps and self.seconds < budget:
            before = time.process_time()
            self.training.step()
            self.done += 1
            self.seconds += time.process_time() - before
            if time.process_time() - start > TURN:
                break

    def over(self, budget: float) -> bool:
        return self.done >= self.steps or self.seconds >= budget

    def look(self, held_out: Tensor) -> None:
        loss = held_out_loss(self.training.model, held_out, self.context)
        self.curve.append((self.done, self.seconds, loss))

    def row(self, held_out: Tensor) -> Row:
        model, (*_, last) = self.training.model, self.curve
        reached = [seconds for _, seconds, loss in self.curve if loss <= GOAL]
        return {
            "contender": self.name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "context": self.context,
            "batch": self.count,
            "steps": self.done,
            "cpu_seconds": round(self.seconds, 1),
            "held_out": round(last[2], 3),
            "held_out_short": round(held_out_loss(model, held_out, SHORT), 3),
            "to_goal": round(reached[0], 1) if reached else "",
        }


def contenders(text: str) -> list[Contender]:
    """All, not yet begun."""
    recipe = Recipe()

    def ours(steps: int) -> Training:
        return Training(text, Recipe(steps=steps))

    def peer(blocks: int, context: int, count: int) -> Callable:
        def begin(steps: int) -> PeerTraining:
            training = PeerTraining(text, blocks, context, count)
            training.steps = steps
            return training

        return begin

    return [
        Contender(OURS, ours, recipe.length, recipe.count),
        Contender(PEER, peer(4, 64, 12), 64, 12),
        Contender(PEER_AS_LARGE, peer(5, 128, 8), 128, 8),
    ]


def race(text: str, budget: float) -> list[Row]:
    """Train all in turns, and give a row for each."""
    ids = torch.tensor(Characters(text).encode(text))
    _, held_out = learnt_and_held_out(ids)
    all_of_them = contenders(text)
    for each in all_of_them:
        each.prepare(budget)
    looked, looks = 0, looks_in(budget)
    while not all(each.over(budget) for each in all_of_them):
        for each in all_of_them:
            each.turn(budget)
        least = min(each.seconds for each in all_of_them)
        if least >= (looked + 1) * budget / looks:
            looked = min(looks, int(looks * least / budget))
            for each in all_of_them:
                each.look(held_out)
            losses = ", ".join(f"{e.name} {e.curve[-1][2]:.3f}" for e in all_of_them)
            say(f"{progress(looked, looks)} {losses}")
    for each in all_of_them:
        each.look(held_out)
    return [each.row(held_out) for each in all_of_them]


def looks_in(budget: float) -> int:
    """How often the held-out loss is taken: it takes seconds itself."""
    return max(2, min(20, int(budget / 15)))


def report(rows: list[Row], described: str, budget: float) -> str:
    """The table and what follows from it, in Markdown."""
    head = "| contender | parameters | context | batch | steps | CPU s | held out |"
    head += f" in pieces of {SHORT} | CPU s to {GOAL} |"
    lines = [head, "| --- |" + " --- |" * 8]
    for row in rows:
        cells = [str(row[column]) for column in COLUMNS[:-1]]
        lines.append(f"| {' | '.join(cells)} | {row.get('to_goal') or 'not reached'} |")
    parts = ["# The small GPT beside nanoGPT's", "Written by `make bench`.", described]
    parts += ["\n".join(lines)]
    parts.append(
        f"Each trained for at most {budget:g} CPU seconds of one thread, in turns. "
        "Held out is the loss, in nats a character, of the last tenth of *The Devil's "
        "Dictionary*, read in pieces of the contender's own context, and in pieces of "
        f"{SHORT} for all. The last column is the first look, of {looks_in(budget)}, "
        f"at or below {GOAL}."
    )
    parts.append(verdict(rows))
    return "\n\n".join(parts) + "\n"


def verdict(rows: list[Row]) -> str:
    """Whether the goal was met, and who is ahead."""
    ours, *peers = rows
    met = "meets" if ours["held_out"] <= GOAL else "misses"
    best = min(peers, key=lambda row: row["held_out_short"])
    apart = best["held_out_short"] - ours["held_out_short"]
    way = "below" if apart > 0 else "above"
    return (
        f"Ours {met} the goal of {GOAL}: {ours['held_out']}. In pieces of {SHORT} it "
        f"is {abs(apart):.3f} {way} the better of the peers, {best['contender']}."
    )


def main() -> None:
    summary, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="10 s, nothing written")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for each")
    options = parser.parse_args()
    budget = 10.0 if options.quick else options.budget
    torch.set_num_threads(1)
    described = machine("cpu")
    say(described)
    rows = race(load_corpus(), budget)
    text = report(rows, described, budget)
    say(f"\n{text}")
    if not options.quick:
        (HERE / "small_gpt.md").write_text(text, encoding="utf-8")
        with (HERE / "small_gpt.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

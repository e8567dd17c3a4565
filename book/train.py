"""Train the small GPT of book/training/small_gpt.ipynb, longer than its page does.

    python book/train.py                    goes on where it was stopped, or begins
    python book/train.py --positions alibi  another variant, in a folder of its own
    python book/train.py --store            writes the curve that the chapter draws
    python book/train.py --variants         writes the table of variants of the chapter
    python book/train.py --write "MAN, n."  lets the best model write

Every `--look-every` steps it looks at the held-out text and keeps a checkpoint. It may
be stopped or killed at any moment: the same command goes on, to the same losses.
"""

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean

import torch

from attention.training.small_gpt import (
    GPT,
    Recipe,
    Training,
    load_corpus,
    read_checkpoint,
    resume,
    train,
)

ROOT = Path(__file__).resolve().parents[1]
CURVE = ROOT / "book/_data/small_gpt_curve.csv"
VARIANTS = ROOT / "book/_data/small_gpt_variants.csv"
COLUMNS = ["step", "loss", "held_out", "cpu_seconds"]
# Options of the model, by the name that the table gives them.
MODELS = {
    "4 heads, rotary": {},
    "1 head": {"num_heads": 1},
    "1 key head": {"num_kv_heads": 1},
    "window of 8": {"window": 8},
    "learned": {"positions": "learned"},
    "ALiBi": {"positions": "alibi"},
    "no positions": {"positions": "none"},
}


def main(argv: list[str] | None = None) -> int:
    """Train, or what else was asked for; 0 if all went well."""
    options = arguments(argv)
    torch.set_num_threads(1)  # the sums of one thread are the same each time
    try:
        text = load_corpus(options.text)
        if options.variants:
            compare(text, options.recipe, options.seeds, options.table)
        elif options.write:
            print(written(text, options.recipe, options.folder, options.write))
        else:
            course(text, options.recipe, options.folder)
            if options.store:
                write_whole(CURVE, (options.folder / "curve.csv").read_text("utf-8"))
                print(f"stored {CURVE.relative_to(ROOT)}")
    except (ValueError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from the last checkpoint")
        return 130
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options; those of the model and of the recipe become one `Recipe`."""
    summary, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", help="a file in UTF-8 (default: the dictionary)")
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept")
    parser.add_argument("--store", action="store_true", help="keep the curve's numbers")
    parser.add_argument("--variants", action="store_true", help="compare variants")
    parser.add_argument("--seeds", type=int, default=3, help="of each variant")
    parser.add_argument("--table", type=Path, default=VARIANTS, help="of the variants")
    parser.add_argument("--write", metavar="TEXT", help="go on with this text")
    for name in ("d", "num-blocks", "num-heads", "num-kv-heads", "window"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--positions", help="rotary, learned, alibi or none")
    plain = [each for each in fields(Recipe) if each.name != "model"]
    for each in plain:
        name = f"--{each.name.replace('_', '-')}"
        parser.add_argument(name, type=type(each.default), default=each.default)
    options = parser.parse_args(argv)
    names = ("d", "num_blocks", "num_heads", "num_kv_heads", "window", "positions")
    model = {name: getattr(options, name) for name in names}
    model = {name: value for name, value in model.items() if value is not None}
    given = {each.name: getattr(options, each.name) for each in plain}
    options.recipe = Recipe(**given, model=model)
    if options.folder is None:
        variant = "-".join(f"{name}-{value}" for name, value in model.items())
        options.folder = ROOT / "runs" / f"small_gpt{variant and '-' + variant}"
    return options


# One training


def course(text: str, recipe: Recipe, folder: Path) -> None:
    """Train to the end, with a line of progress, a table and a picture of the curve."""
    training = Training(text, recipe)
    for sentence in resume(training, folder):
        print(sentence)
    if training.losses:
        print(f"goes on after step {len(training.losses)}")
    show(training)
    for step in train(training, folder):
        looked = bool(training.looks) and training.looks[-1][0] == step
        if looked:
            write_whole(folder / "curve.csv", curve(training))
        if looked or step % 10 == 0:
            show(training, end="\n" if looked and not sys.stdout.isatty() else "")
    print()
    draw(training, folder / "curve.svg")
    step, loss, _ = min(training.looks, key=lambda look: look[1])
    print(f"best: {loss:.3f} after {step} steps, {folder / 'best.checkpoint'}")


def show(training: Training, end: str = "") -> None:
    """The line of progress: how far, losses, seconds of the processor."""
    done, steps = len(training.losses), training.recipe.steps
    filled = 24 * done // steps
    words = [f"[{'#' * filled}{'.' * (24 - filled)}] {done}/{steps}"]
    if training.losses:
        words.append(f"loss {mean(training.losses[-20:]):.3f}")
    if training.looks:
        words.append(f"held out {training.looks[-1][1]:.3f}")
    words.append(f"{training.seconds:.0f} CPU s")
    print("\r" + "  ".join(words), end=end, flush=True)


def curve(training: Training) -> str:
    """The numbers of the curve: at each look, the mean loss since the one before."""
    rows, before = [], 0
    for step, held_out, seconds in training.looks:
        loss = mean(training.losses[before:step])
        rows.append([step, f"{loss:.4f}", f"{held_out:.4f}", f"{seconds:.1f}"])
        before = step
    return as_csv([COLUMNS, *rows])


def draw(training: Training, path: Path) -> None:
    """The curve as a picture."""
    from matplotlib.figure import Figure

    from attention.tools.workbench import BLUE, BROWN

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(training.losses, color=BROWN, lw=0.6, label="each batch")
    steps, losses, _ = zip(*training.looks, strict=True)
    axes.plot(steps, losses, color=BLUE, marker="o", ms=3, label="held out")
    axes.set(xlabel="step", ylabel="loss (nats a character)")
    axes.legend(frameon=False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    write_whole(path, drawn.getvalue())


def as_csv(rows: Iterable[Iterable]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


def write_whole(path: Path, text: str) -> None:
    """A file that is whole or stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


@torch.no_grad()
def written(
    text: str, recipe: Recipe, folder: Path, prompt: str, count: int = 300
) -> str:
    """The prompt, and what the best model adds to it."""
    training = Training(text, recipe)
    state = read_checkpoint(folder / "best.checkpoint")
    if state.get("text", training.text_sum) != training.text_sum:
        raise ValueError("text: expected the one learnt from, got another one")
    model = GPT(len(training.tokenizer), **state["recipe"]["model"])
    model.load_state_dict(state["model"])
    ids = torch.tensor([training.tokenizer.encode(prompt)])
    for _ in range(count):
        logits = model(ids[:, -recipe.length :])[:, -1]
        drawn = torch.multinomial((logits / 0.8).softmax(dim=-1), 1)
        ids = torch.cat([ids, drawn], dim=1)
    return training.tokenizer.decode(ids[0].tolist())


# Variants


def compare(text: str, recipe: Recipe, seeds: int, table: Path) -> None:
    """Train each variant from several seeds, and write a row for each at once.

    What stands in the table already, with as many steps, is not trained again.
    """
    rows = [["variant", "seed", "steps", "parameters", "held_out", "cpu_seconds"]]
    if table.is_file():
        held = [*csv.reader(io.StringIO(table.read_text("utf-8")))][1:]
        rows += [row for row in held if row[2] == str(recipe.steps)]
    done = {(row[0], row[1]) for row in rows}
    for seed in range(seeds):
        for name, model in MODELS.items():
            if (name, str(seed)) in done:
                continue
            # It looks once, at the end.
            steps = {"look_every": recipe.steps, "model": recipe.model | model}
            training = Training(text, replace(recipe, seed=seed, **steps))
            for step in train(training):
                if step % 10 == 0:
                    show(training)
            _, loss, seconds = training.looks[-1]
            parameters = sum(each.numel() for each in training.model.parameters())
            numbers = [parameters, f"{loss:.4f}", f"{seconds:.1f}"]
            rows.append([name, str(seed), str(recipe.steps), *numbers])
            write_whole(table, as_csv(rows))
            print(f"\r{name}, seed {seed}: {loss:.3f} in {seconds:.0f} CPU s".ljust(79))


if __name__ == "__main__":
    sys.exit(main())

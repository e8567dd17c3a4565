"""What must stay true of the benchmarks, without running one: nothing here is timed."""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("resource")  # what the harness asks for its own time: not Windows

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402
import context_parallel  # noqa: E402
import decode  # noqa: E402
import flash  # noqa: E402
import flash_cpp  # noqa: E402
import harness  # noqa: E402
import layer  # noqa: E402
import multi_head  # noqa: E402
import small_gpt  # noqa: E402

from attention import run_ranks  # noqa: E402

SCRIPTS = {"multi_head": multi_head, "flash": flash}


def number(text: str):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def rows_of(name: str) -> list[common.Row]:
    """The numbers that were written last."""
    with (BENCHMARKS / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: number(v) for k, v in row.items() if v != ""} for row in rows]


def some_rows(script) -> list[common.Row]:
    """Numbers for every contender, cell and device, as a run would give them."""
    place = {"device": "cpu", "dtype": "float32", "direction": "forward"}
    times = {"milliseconds": 2.0, "spread": 0.5, "rounds": 3, "disturbed": 1}
    ratios = {"ratio": 1.5, "fastest": "another", "speed": 0.5, "error_ratio": 1.0}
    rows = []
    for name in script.CONTENDERS:
        rows.append(place | times | ratios | {"contender": name, "length": 11})
        for length in (11, 22):
            peak = {"contender": name, "length": length, "peak_mib": 3.0 * length}
            rows.append(place | peak)
    return rows


@pytest.mark.parametrize(
    ("script", "label"),
    [(multi_head, ""), (layer, ""), (flash_cpp, ""), (flash_cpp, "amd")],
)
def test_the_report_is_what_its_numbers_say(script, label):
    name = "-".join(filter(None, [script.__name__, label]))
    text = (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")
    rounds = int(re.search(r"the median of (\d+) rounds", text)[1])
    (described,) = re.findall(r"(?m)^.*The fused call picks.*$", text)
    report = script.report(rows_of(name), {"cpu": described}, rounds)
    if label:
        report = common.labelled(report, script.__name__, label)
    assert report == text


def test_the_goals_are_those_of_the_machine_that_was_measured(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: 1 / 0)
    rows = [row | {"kind": "full"} for row in some_rows(flash_cpp)]
    rows = [row | {"dtype": "bfloat16"} for row in rows]
    for machine, goal in ("Intel, amx_bf16", "1.25"), ("AMD, avx512_bf16", "2.00"):
        text = flash_cpp.report(rows, {"cpu": machine}, rounds=3)
        assert f"bfloat16 forward: the goal of {goal} ×" in text


@pytest.mark.parametrize("direction", common.PASSES)
def test_a_layer_without_slots_is_timed_on_what_the_older_one_computes(direction):
    steps = layer.prepare(multi_head.Cell("cpu", "float32", direction, 5))
    assert [*steps] == layer.CONTENDERS
    output, *gradient = steps[layer.OURS].results()
    assert output.shape == (1, 5, layer.WIDTH)
    assert len(gradient) == (direction != "forward")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_report_has_a_column_for_each_contender_and_says_what_was_missed(script):
    script = SCRIPTS[script]
    text = script.report(some_rows(script), {"cpu": "a machine"}, rounds=3)
    head = next(line for line in text.splitlines() if line.startswith("| dtype"))
    assert [*script.CONTENDERS, "spread"] == head.strip("| ").split(" | ")[3:]
    assert "| 2.0 (" in text
    assert "25% |" in text, "the spread of ours"
    assert "Not in float32 forward 11" in text
    assert f"disturbed {len(script.CONTENDERS)} of" in text
    assert "| 33 | 66 | 1.00 |" in text, "twice the length, twice the memory"


def test_a_quick_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "HERE", tmp_path)
    for quick in ("--quick", None):
        argv = ["bench.py", "--device", "cpu", *filter(None, [quick])]
        monkeypatch.setattr(sys, "argv", argv)
        options = common.arguments("Time it.")
        rows = some_rows(multi_head)
        common.finish("bench", multi_head.OURS, "the report", rows, options)
        assert bool(list(tmp_path.iterdir())) == (quick is None)
    lines = (tmp_path / "bench.csv").read_text().splitlines()
    assert lines[0].startswith("device,dtype,direction,")
    assert len(lines) == 1 + len(rows)
    picture = (tmp_path / "bench-cpu.svg").read_text()
    assert all(f"<!-- {name} -->" in picture for name in multi_head.CONTENDERS)
    assert capsys.readouterr().out.count("the report") == 2


@pytest.mark.parametrize("wrong", [("--rounds", "1"), ("--device", "abacus")])
def test_an_option_that_cannot_be_is_refused(wrong, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", *wrong])
    with pytest.raises(SystemExit):
        common.arguments("Time it.")
    assert wrong[0] in capsys.readouterr().err


def test_a_label_keeps_the_results_of_two_machines_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "HERE", tmp_path)
    argv = ["bench.py", "--device", "cpu", "--label", "amd"]
    monkeypatch.setattr(sys, "argv", argv)
    options = common.arguments("Time it.")
    text = common.picture("bench", "cpu", multi_head.OURS)
    common.finish("bench", multi_head.OURS, text, some_rows(multi_head), options)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"bench-amd.md", "bench-amd.csv", "bench-amd-cpu.svg"}
    assert "](bench-amd-cpu.svg)" in (tmp_path / "bench-amd.md").read_text()


def test_lengths_that_might_not_fit_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr(common, "free_memory", lambda device: 12 * 2**20)
    monkeypatch.setattr(common, "peak_growth", lambda call, device: call() * 2**20)
    found = common.peaks_by_length("it", "cpu", [1, 2, 4], lambda n: lambda: n)
    assert list(found) == [(1, 1.0), (2, 2.0)]
    assert "it: 4 and longer might not fit" in capsys.readouterr().out


def test_the_bar_fills():
    bars = [common.progress(done, 3) for done in range(4)]
    assert bars[0] == f"[{'.' * 20}] 0/3"
    assert bars[3] == f"[{'#' * 20}] 3/3"
    assert [bar.count("#") for bar in bars] == sorted(bar.count("#") for bar in bars)


def test_what_a_first_call_leaves_behind_is_not_measured(monkeypatch):
    made = []

    def ready(length):
        return lambda: made.append(length) or made.count(length)

    monkeypatch.setattr(common, "peak_growth", lambda call, device: call() * 2**20)
    found = common.peaks_by_length("it", "cpu", [11, 13], ready)
    assert list(found) == [(11, 2.0), (13, 2.0)], "the second call of each length"


@pytest.mark.parametrize("name", ["companion's class", "by hand", "fused QKV"])
def test_a_contender_computes_what_ours_does(name):
    module = multi_head.reference(11)
    x = torch.randn(2, 11, multi_head.WIDTH)
    theirs, ours = (
        multi_head.Step(multi_head.CONTENDERS[which](module), x, backward=True)
        for which in (name, multi_head.OURS)
    )
    multi_head.compare(name, theirs.results(), ours.results(), tolerance=1e-5)


@pytest.mark.parametrize(("repeats", "calls"), [(1, 1), (3, 4)])
def test_short_calls_are_measured_behind_one_that_is_not_counted(repeats, calls):
    made = []
    harness.sample(lambda: made.append(1), repeats, "cpu")
    assert len(made) == calls


# A step with a cache


@pytest.mark.parametrize("label", ["", "amd", "avx2"])
def test_the_report_of_a_step_is_what_its_numbers_say(label):
    name = "-".join(filter(None, ["decode", label]))
    text = (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")
    rounds = int(re.search(r"the median of (\d+) rounds", text)[1])
    (described,) = re.findall(r"(?m)^(.*, torch .*)\.$", text)
    report = decode.report(rows_of(name), {"cpu": described}, rounds)
    assert (common.labelled(report, "decode", label) if label else report) == text


def step_rows(**shares: float) -> list[common.Row]:
    """Numbers of a run in which contenders reach these shares of the limit."""
    place = {"device": "cpu", "dtype": "float32", "direction": "step, width 768"}
    times = {
        "length": 2000,
        "milliseconds": 2.0,
        "spread": 0.5,
        "rounds": 3,
        "disturbed": 1,
    }
    return [
        place | times | {"contender": name, "share": shares.get(name, 0.5), "faster": 7}
        for name in [*decode.CONTENDERS, decode.LIMIT]
    ]


def test_a_report_of_a_step_says_what_was_met_and_missed():
    text = decode.report(step_rows(KVCache=0.8), {"cpu": "a machine"}, rounds=3)
    head = next(line for line in text.splitlines() if line.startswith("| dtype"))
    columns = head.strip("| ").split(" | ")[3:]
    assert columns == [*decode.CONTENDERS, decode.LIMIT, "spread"]
    assert "| 2.0 (0.80) |" in text
    assert "In float32, step, width 768, at 2000 (the goal is 0.75):" in text
    assert "KVCache meets it, 0.80; KVCache, cpp_attend misses it, 0.50;" in text
    assert "7 × as fast as the whole pass, the goal is 100 ×." in text
    assert "disturbed 8 of 24 samples" in text


def test_a_report_of_a_step_says_who_did_not_run():
    rows = [row for row in step_rows() if row["contender"] != decode.COMPILED]
    text = decode.report(rows, {"cpu": "a machine"}, rounds=3)
    assert "KVCache, compiled did not run." in text


def test_a_machine_is_told_with_what_its_processor_can(monkeypatch):
    info = {"model name": "A chip", "flags": "fpu avx2 avx512f_other amx_bf16"}
    monkeypatch.setattr(harness, "cpu_info", info.get)
    assert harness.machine("cpu").startswith("A chip, avx2, amx_bf16, ")


@torch.no_grad()
@pytest.mark.parametrize("dtype", common.DTYPES)
def test_contenders_say_the_same_of_a_new_token(dtype, capsys):
    """But for the compiled one: it takes a compiler, and is compared when it runs."""
    others = {k: v for k, v in decode.CONTENDERS.items() if k != decode.COMPILED}
    size = decode.Size(width=128, layers=3)
    calls = decode.ready("cpu", dtype, size, 11, others)
    assert set(others) - set(calls) <= {decode.THEIRS, decode.CPP}
    numbers = sum(w.nbytes for w in decode.some_layers("cpu", dtype, size).parameters())
    held = calls[decode.CAT].caches[0].held
    numbers += size.layers * sum(tensor.nbytes for tensor in held[:2])
    assert decode.bytes_read(dtype, size, 11) == numbers


def test_a_contender_that_says_another_thing_is_named():
    given = torch.ones(3), 1.1 * torch.ones(3)
    with pytest.raises(AssertionError, match="it must say what the whole pass says"):
        decode.compare("it", *given, 0.05)


# Several ranks


def rank_rows(**shares: float) -> list[common.Row]:
    """Numbers of a run in which contenders reach these shares of the ideal."""
    rows = []
    for name in context_parallel.CONTENDERS:
        for direction in common.PASSES:
            cell = context_parallel.PLACE | {"direction": direction, "length": 2048}
            times = {"milliseconds": 200.0, "spread": 50.0, "rounds": 3, "disturbed": 1}
            share = {"share": shares.get(name.split(", ")[-1], 0.5)}
            rows.append(cell | {"contender": name} | times | share)
            for rank in range(context_parallel.shared_by(name)):
                place = {"contender": name, "rank": f"rank {rank}", "peak_mib": 7.0}
                rows.append(cell | place)
    return rows


def test_a_report_of_ranks_says_what_was_met_and_has_each_ranks_memory():
    rows = rank_rows(zigzag=0.94, contiguous=0.66)
    text = context_parallel.report(rows, {"cpu": "a machine"}, rounds=3)
    head = next(line for line in text.splitlines() if line.startswith("| dtype"))
    columns = head.strip("| ").split(" | ")[3:]
    assert columns == [*context_parallel.CONTENDERS, "spread"]
    assert "| 200 (0.94) |" in text
    assert "ring, zigzag, forward, meets its goal: 0.94, the goal is 0.93;" in text
    assert "it has 1.88 of the speed of each by itself." in text
    assert "Ulysses, forward+backward, misses its goal: 0.50" in text
    assert "contiguous order has 0.66; its bound is 0.67." in text
    assert "disturbed 12 of 36 samples" in text
    assert "| forward | Ulysses | rank 1 | 7 |" in text
    assert "rank 1" not in text.split("| one device |")[1].split("\n")[0]


def test_the_report_of_ranks_is_what_its_numbers_say():
    if not (BENCHMARKS / "context_parallel.csv").exists():
        pytest.skip("no long run has been stored yet")
    text = (BENCHMARKS / "context_parallel.md").read_text(encoding="utf-8")
    rounds = int(re.search(r"the median of (\d+) rounds", text)[1])
    (described,) = re.findall(r"(?m)^(.*, torch .*)\.$", text)
    rows = rows_of("context_parallel")
    assert context_parallel.report(rows, {"cpu": described}, rounds) == text


def ranks_compared():
    steps = {n: context_parallel.Step(n, 53, True) for n in context_parallel.CONTENDERS}
    context_parallel.compare(steps)
    for name in ("one device", "each by itself"):
        assert context_parallel.shared_by(name) == 1
        assert steps[name].inputs[0].shape[-2] == 53, f"{name} has the whole text"
    steps["Ulysses"].inputs[2] = 1.1 * steps["Ulysses"].inputs[2]
    with pytest.raises(AssertionError, match="Ulysses must give"):
        context_parallel.compare(steps)
    taken = context_parallel.sample("Ulysses", steps["Ulysses"], 2)
    return taken.seconds, taken.foreign


def test_ranks_are_compared_and_agree_on_what_they_measured():
    first, second = run_ranks(ranks_compared, 2)
    assert first == second
    assert first[0] > 0


def test_a_disturbed_sample_is_taken_again_while_retakes_are_left(monkeypatch):
    monkeypatch.setattr(context_parallel, "PAUSE_SECONDS", 0)
    samples = iter([context_parallel.Sample(1, foreign) for foreign in (0.5, 0.9, 0.3)])
    left = [2]
    best = context_parallel.least_disturbed(lambda: next(samples), left)
    assert (best.foreign, left) == (0.3, [0])


# The small GPT


def test_the_peer_has_the_sizes_of_its_readme_and_the_future_is_hidden():
    torch.manual_seed(0)
    peer, ids = small_gpt.PeerGPT(83, 128, 4, 4, 64), torch.randint(83, (2, 64))
    count = sum(weights.numel() for weights in peer.parameters())
    assert count == (83 + 64) * 128 + 4 * (12 * 128**2 + 2 * 128) + 128
    changed = ids.clone()
    changed[:, 40:] = 0
    torch.testing.assert_close(peer(ids)[:, :40], peer(changed)[:, :40])


def test_the_peers_learning_rate_is_nanogpts():
    rates = [small_gpt.peer_rate(step, 2000) for step in range(2001)]
    assert rates[0] == 0
    assert max(rates) == rates[100] == pytest.approx(1e-3)
    assert rates[1050] == pytest.approx(5.5e-4)
    assert rates[2000] == pytest.approx(1e-4)


def test_all_take_turns_until_their_budget_is_spent():
    text = "abc" * 600
    began = []

    class Fake:
        model = None

        def step(self):
            pass

    def begin(steps):
        began.append(steps)
        return Fake()

    contender = small_gpt.Contender("it", begin, 64, 12)
    contender.prepare(0.01)
    contender.turn(0.01)
    assert contender.over(0.01)
    assert contender.done <= began[-1] == contender.steps
    names = [each.name for each in small_gpt.contenders(text)]
    assert names == [small_gpt.OURS, small_gpt.PEER, small_gpt.PEER_AS_LARGE]


def test_the_report_of_the_training_is_what_its_numbers_say():
    text = (BENCHMARKS / "small_gpt.md").read_text(encoding="utf-8")
    budget = float(re.search(r"at most (\S+) CPU seconds", text)[1])
    (described,) = re.findall(r"(?m)^.*, torch .*$", text)
    rows = rows_of("small_gpt")
    assert small_gpt.report(rows, described, budget) == text
    assert [row["contender"] for row in rows] == [
        small_gpt.OURS,
        small_gpt.PEER,
        small_gpt.PEER_AS_LARGE,
    ]


def test_a_report_of_training_says_who_is_ahead_and_whether_the_goal_was_met():
    row = {"parameters": 7, "context": 64, "batch": 3, "steps": 5, "cpu_seconds": 2.0}
    losses = {"ours": (1.9, 1.95, 1.5), "a": (2.4, 2.4, ""), "b": (2.2, 2.3, "")}
    rows = [
        row
        | {"contender": name, "held_out": own, "held_out_short": short, "to_goal": to}
        for name, (own, short, to) in losses.items()
    ]
    text = small_gpt.report(rows, "a machine", 300)
    assert "Ours meets the goal of 2.0: 1.9." in text
    assert "0.350 below the better of the peers, b." in text
    assert "| a | 7 | 64 | 3 | 5 | 2.0 | 2.4 | 2.4 | not reached |" in text
    assert "misses the goal" in small_gpt.report([rows[1], *rows[1:]], "it", 300)

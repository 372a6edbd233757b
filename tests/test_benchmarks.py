"""The benchmarks run, count what they say they count, and report what was measured."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import cases, environments, material, ours, report, roofline, running
from benchmarks.peers import measuring
from sae_vis import AutoEncoder
from sae_vis._full_ablation import FullAblation
from sae_vis.model_fns import LanguageModel

PEERS_FOLDER = Path(environments.__file__).parent / "peers"

pytestmark = pytest.mark.xdist_group("benchmarks")  # the files are shared


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def small(name: str) -> cases.Case:
    (case,) = cases.chosen([name], small=True)
    return case


# --- the whole ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_command_prints_a_table_and_writes_the_figures_to_a_file(cache, tmp_path, capsys):
    file = tmp_path / "figures.json"
    names = ["S-asked", "L-full"]
    assert command_line.main([*names, "--tiny", "--no-peers", f"--cache={cache}", f"--json={file}", "--repeat=1"]) == 0

    content = json.loads(file.read_text("utf-8"))
    assert list(content["cases"]) == names
    for case in content["cases"].values():
        figures, (one,) = case["figures"], [one["ours"] for one in case["rounds"]]
        pieces = one["roofline"]["pieces"]
        assert one["roofline"]["total_s"] == pytest.approx(sum(piece["seconds"] for piece in pieces.values()))
        assert all(piece["n"] >= piece["sampled"] > 0 for piece in pieces.values())
        assert one["peak_bytes"]["html"] >= one["peak_bytes"]["data"] > 10**8
        assert figures["times_roofline"] == sum(one["seconds"].values()) / one["roofline"]["total_s"]
        assert figures["roofline_s"] > 0
        assert figures["data_s"] > 0
    assert content["cases"]["S-asked"]["figures"]["html_kb_median_packed"] > 1
    assert content["cases"]["S-asked"]["figures"]["json_features_per_s"] > 1
    assert set(content["cases"]["L-full"]["rounds"][0]["ours"]["roofline"]["pieces"]) == {
        "forward",
        "encoder",
        "unembedding",
        "pairs",
        "downstream",
    }

    header, *table = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["case", "who"]
    assert [line.split()[:2] for line in table if " ours " in line] == [[name, "ours"] for name in names]


def test_a_case_that_does_not_exist_is_named_and_the_others_are_listed(capsys):
    assert command_line.main(["X"]) == 2
    assert "There is no case 'X'. There are S-all, S-asked, M, D, G, G2, L-direct, L-full." in capsys.readouterr().err


def test_cases_are_chosen_by_name_or_by_letter():
    assert [case.name for case in cases.chosen(["D", "S"])] == ["S-all", "S-asked", "D"]
    assert cases.chosen([]) == list(cases.CASES)


# --- counting -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def direct(cache) -> SimpleNamespace:
    return fetched(small("M"), cache)


@pytest.fixture(scope="module")
def full(cache) -> SimpleNamespace:
    return fetched(small("L-full"), cache)


def fetched(case: cases.Case, cache: Path) -> SimpleNamespace:
    """A case's data, and all activations ``[rows, seq, features]``, those on BOS left out as the library leaves them."""
    given = material.load(case.shape, cache, case.rows)
    # Features that fire often: then windows overlap, and hold activations beside the bold one.
    weights = {name: weight.detach() for name, weight in given.encoder.named_parameters()}
    encoder = AutoEncoder.from_weights({**weights, "b_enc": weights["b_enc"] + 0.5 * weights["b_enc"].abs()})
    given = given._replace(encoder=encoder)
    lm, done = LanguageModel(given.model), []
    real = FullAblation.effects

    def counting(self, tokens, work, entering=None):
        work = list(work)
        done.extend(work)
        return real(self, tokens, work, entering)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FullAblation, "effects", counting)
        data = ours.fetch(case, given, cache)
    with lm.as_for_inference():
        acts = encoder.encode(lm.activations(given.tokens, case.shape.hook_point))
    acts[:, 0] = 0.0
    return SimpleNamespace(case=case, given=given, data=data, acts=acts, ablations=done)


def shown_tokens(feature) -> set[tuple[int, int]]:
    """Row and position of every token that the feature's examples show."""
    return {
        (one.row, one.start + i)
        for examples in [*(group.sequences for group in feature.sequences.groups), feature.counterexamples.sequences()]
        for one in examples
        for i in range(len(one.token_ids))
    }


def test_pairs_and_positions_are_those_of_active_features_one_token_before_one_that_is_shown(direct):
    pairs = {
        (feature, row, position - 1)
        for feature, data in direct.data.items()
        for row, position in shown_tokens(data)
        if position > 0 and direct.acts[row, position - 1, feature] > 0
    }
    positions = {(row, position) for _, row, position in pairs}
    assert len(pairs) > len(positions) > 100
    assert roofline.count_pairs(direct.data.values(), direct.case.shape.seq_len) == (len(positions), len(pairs))


def test_ablations_are_features_in_shown_rows_with_the_shown_tokens_behind_their_first_activation(full):
    ablations, places, predictions = set(), set(), 0
    for feature, data in full.data.items():
        for row, position in shown_tokens(data):
            if any(full.acts[row, p, feature] > 0 for p in range(position)):
                ablations.add((feature, row))
                places.add((row, position))
                predictions += 1
    # And so many the library makes.
    assert len(ablations) == len(full.ablations) > 100
    assert predictions == sum(len(one.predicted) for one in full.ablations) > len(places)
    counts = roofline._counts(full.case, full.given, full.data)
    assert counts.passes == len(ablations) + len({row for row, _ in places})  # each row as it is, too
    assert counts.positions == predictions + len(places)
    listed = [e for one in full.data.values() for s in roofline.shown_sequences(one) for e in s.effects]
    assert len(listed) >= counts.pairs > 100


def test_the_plain_blocks_give_the_models_own_final_residual_stream(full, cache):
    lm = LanguageModel(full.given.model)
    blocks = roofline.Blocks(material.prepare(full.case.shape, cache), full.case.shape.hook_point)
    with lm.as_for_inference():
        tokens = full.given.tokens[:5]
        entering = lm.activations(tokens, full.case.shape.hook_point)
        torch.testing.assert_close(blocks(entering), lm.final_residual(tokens), rtol=1e-4, atol=1e-4)
    assert len(blocks.layers) == 2


def test_no_roofline_of_the_full_ablation_is_made_up_for_another_hook_point(cache):
    with pytest.raises(ValueError, match=r"not for blocks.0.mlp.hook_post"):
        roofline.Blocks(material.prepare(material.TINY_GELU_1L, cache), "blocks.0.mlp.hook_post")


def test_only_the_features_asked_for_are_encoded_where_nothing_else_is_correlated(cache):
    for name, expected in (("S-all", 256), ("S-asked", 6)):
        case, widths = small(name), []
        given, product = material.load(case.shape, cache, 8), roofline._product
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(roofline, "_product", lambda w, b: widths.append(w.shape[1]) or product(w, b))  # noqa: B023
            with torch.no_grad():
                roofline._shared_pieces(case, given, LanguageModel(given.model))
        assert widths == [expected]


def test_what_was_timed_on_a_part_is_multiplied_to_the_whole():
    seen = []
    piece = roofline.timed(lambda part: seen.append(len(part)), torch.zeros(10), 4, 1000)
    assert seen == [4, 4, 4, 2]  # the first one warms up
    assert (piece.n, piece.sampled) == (1000, 10)
    assert roofline.timed(seen.append, torch.zeros(0), 4, 0) == (0.0, 0, 0)


# --- reporting ----------------------------------------------------------------------------------------------------


def result(data: float, html: float = 0.0, peak: float = 1e9, **more: Any) -> dict[str, Any]:
    return {
        "seconds": {"data": data, "html": html},
        "peak_bytes": {"data": peak / 2, "html": peak},
        "html_bytes": 64_000,
        "features": 64,
        "files": None,
        "roofline": {"total_s": 2.0},
        **more,
    }


def case_of(**options: Any) -> cases.Case:
    shape = material.TINY_GELU_1L
    return cases.Case("A", "a case", shape, features=64, rows=8, **options)


def test_figures_are_medians_and_ratios_are_made_within_a_round():
    rounds = [
        {"ours": result(1.0, 1.0), "peers": {"other": result(20.0)}},  # a slow moment of the machine hits both
        {"ours": result(2.0, 2.0), "peers": {"other": result(40.0)}},
        {"ours": result(0.5, 0.5), "peers": {"other": result(100.0)}},
    ]
    found = report.figures(case_of(peers=("other",)), rounds, {})
    assert found["times_faster_than other"] == 10.0
    assert found["data_s"] == 1.0
    assert found["times_roofline"] == 1.0
    assert found["peak_gb"] == 1.0
    assert found["html_kb_a_feature"] == 1.0


def test_targets_are_shown_as_met_or_not_or_not_measured():
    bounds = (cases.at_most("peak_gb", 1.5), cases.at_least("minutes", 1), cases.at_most("json_gz_kb_median", 1))
    case = case_of(targets=bounds)
    rounds = {"A": [{"ours": result(1.0), "peers": {}}]}
    lines = report.table([case], rounds).splitlines()
    assert "    peak_gb 1 (<= 1.5): met" in lines
    assert "    minutes 0.0167 (>= 1): NOT MET" in lines
    assert "    json_gz_kb_median (<= 1): not measured" in lines
    assert [target["met"] for target in report.document([case], rounds)["cases"]["A"]["targets"]] == [True, False, None]


def test_memory_is_compared_with_that_of_the_smaller_case():
    rounds = {
        "A": [{"ours": result(1.0, peak=2e9), "peers": {}}],
        "B": [{"ours": result(1.0, peak=2.1e9), "peers": {}}],
    }
    found = report.figures(case_of(grows_from="A"), rounds["B"], rounds)
    assert found["peak_growth_percent"] == pytest.approx(5.0)
    assert "peak_growth_percent" not in report.figures(case_of(), rounds["B"], rounds)


def test_who_fails_is_left_out_of_the_figures_and_named_below_the_table():
    case = case_of(peers=("other",))
    rounds = {"A": [{"ours": result(1.0), "peers": {"other": {"error": "first line\nOut of memory"}}}]}
    assert "times_faster_than other" not in report.figures(case, rounds["A"], rounds)
    assert "    other failed: Out of memory" in report.table([case], rounds).splitlines()
    nothing = {"A": [{"ours": {"error": "Out of memory"}, "peers": {}}]}
    assert report.figures(case, nothing["A"], nothing) == {}
    assert "    ours failed: Out of memory" in report.table([case], nothing).splitlines()


# --- running ------------------------------------------------------------------------------------------------------


def python(code: str, limit_s: float = 60.0) -> dict[str, Any]:
    return running._run([sys.executable, "-c", code], limit_s)


def test_the_last_line_that_a_program_prints_is_its_result():
    given = python("print('some noise'); print('{\"a\": 1}')")
    assert given.pop("cores_taken_by_others") >= 0
    assert given == {"a": 1}


@pytest.mark.parametrize(
    ("code", "limit_s", "error"),
    [
        ("import time; time.sleep(60)", 0.5, "longer than 0.5 s"),
        ("raise SystemExit('no such thing')", 60.0, "status 1: no such thing"),
        ("import os; os.kill(os.getpid(), 9)", 60.0, "status -9"),
        ("", 60.0, "status 0"),
        ("print('not JSON')", 60.0, "no result: not JSON"),
        ("print('[1]')", 60.0, "no result: [1]"),
    ],
)
def test_a_program_that_fails_gives_an_error_and_not_an_exception(code, limit_s, error):
    assert error in python(code, limit_s)["error"]


def test_a_peer_with_other_activations_is_not_compared():
    ours_result, same, other = ({"checksum": value} for value in (10.0, 10.001, 11.0))
    assert running.compared(same, ours_result) == same
    assert "not ours" in running.compared(other, ours_result)["error"]


def test_a_peer_runs_once_a_round_for_all_cases_that_ask_it_for_the_same(monkeypatch):
    calls = []
    monkeypatch.setattr(running, "run_ours", lambda case, *_: calls.append(case.name) or {"error": "not run"})
    monkeypatch.setattr(running, "run_peer", lambda peer, *_: calls.append(peer.name) or {"error": "not run"})
    both = {peer.name: Path("python") for peer in environments.PEERS}
    rounds = running.run_all(cases.chosen(["S"]), Path(), 2, both, False, lambda text: None)
    assert calls == 2 * ["S-all", "sae_vis 0.3.7", "S-asked", "sae-dashboard 0.8.0"]
    assert set(rounds["S-asked"][1]["peers"]) == {"sae_vis 0.3.7", "sae-dashboard 0.8.0"}


def test_long_cases_have_one_round_and_others_as_many_as_are_asked_for(monkeypatch):
    monkeypatch.setattr(running, "run_ours", lambda *_: {"error": "not run"})
    rounds = running.run_all(cases.chosen(["M", "D"]), Path(), 5, {}, False, lambda text: None)
    assert {name: len(of_case) for name, of_case in rounds.items()} == {"M": 5, "D": 1}


def test_what_other_programs_take_meanwhile_is_told():
    busy = "import time\nend = time.time() + 30\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as other:
        disturbed = python("import time; time.sleep(1); print('{}')").get("cores_taken_by_others")
        other.kill()
    assert disturbed > 0.3
    case, told = cases.chosen(["S-asked"])[0], {**result(1.0), "cores_taken_by_others": disturbed}
    assert "disturbed: other programs took up to" in report.table([case], {case.name: [{"ours": told, "peers": {}}]})


def test_a_folder_that_is_not_there_is_told_before_hours_of_work(tmp_path, capsys):
    assert command_line.main(["S", "--tiny", "--no-peers", "--json", str(tmp_path / "none" / "b.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_peak_memory_is_that_of_the_largest_moment():
    before = measuring.peak_bytes()
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])  # or the pages would not be there
    del block
    assert measuring.peak_bytes() - before > 250_000_000 or before > 550_000_000  # unless an earlier test took more


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_the_memory_of_workers_in_other_processes_counts():
    code = "import time; block = bytearray(b'x') * 300_000_000; print('ready', flush=True); time.sleep(60)"
    timer = measuring.Timer()
    with timer.stage("alone"):
        pass
    with timer.stage("with a worker"), subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        alone = measuring.peak_bytes()
        while measuring.family_bytes() < 300_000_000:
            time.sleep(0.01)
        time.sleep(2 * measuring.WATCH_S)
        own = measuring.family_bytes()
        worker.kill()
    assert own > 300_000_000
    assert timer.peaks["with a worker"] >= max(own - 50_000_000, alone) > timer.peaks["alone"] - 50_000_000


def test_a_folder_is_as_large_as_the_files_in_it(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.js").write_text("12345", "utf-8")
    (tmp_path / "index.html").write_text("123", "utf-8")
    measuring.report(measuring.Timer(), tmp_path)
    measuring.report(measuring.Timer(), tmp_path / "index.html")
    sizes = [json.loads(line)["html_bytes"] for line in capsys.readouterr().out.splitlines() if line]
    assert sizes == [8, 3]


# --- peers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(PEERS_FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_what_runs_in_a_peers_environment_imports_nothing_of_ours(file):
    """There, sae_vis is the original, and the benchmarks are not importable."""
    tree = ast.parse(file.read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("benchmarks") for name in names)
    original = {"sae_vis.data_config_classes", "sae_vis.data_storing_fns"} if file.stem == "run_sae_vis_0_3" else set()
    assert {name for name in names if name.partition(".")[0] == "sae_vis"} == original


def test_every_peer_of_a_case_is_known_and_its_program_is_there():
    known = {peer.name: peer for peer in environments.PEERS}
    for case in cases.CASES:
        assert set(case.peers) <= set(known)
    for peer in environments.PEERS:
        assert (PEERS_FOLDER / peer.program).is_file()
        assert all("==" in package for package in (*peer.packages, *peer.alone))


def test_an_environment_made_of_other_packages_is_made_anew(tmp_path):
    peer = environments.PEERS[0]
    assert environments.python_of(peer, tmp_path) is None
    folder = environments._folder(peer, tmp_path)
    folder.mkdir(parents=True)
    (folder / "made-of.json").write_text(json.dumps(environments._recipe(peer)), "utf-8")
    assert environments.python_of(peer, tmp_path) == folder / "bin" / "python"
    (folder / "made-of.json").write_text("{}", "utf-8")
    assert environments.python_of(peer, tmp_path) is None


def test_a_peer_cannot_see_our_packages(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert "PYTHONPATH" not in environments.clean_environment()

"""Our own run of one case, in a process of its own: ``python -m benchmarks.ours TASK``; the last line is the result."""

from __future__ import annotations

import gzip
import inspect
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, material, roofline
from benchmarks.cases import Case
from benchmarks.material import Material
from benchmarks.peers import measuring
from sae_vis import FeatureVisParams, MultiFeatureData, get_feature_data
from sae_vis.model_fns import LanguageModel

_PACKED = re.compile(rb'data-packed="\d+">([^<]*)<')


def main() -> None:
    """Fetch, draw, look at the files, measure the roofline, print."""
    asked, timer = measuring.task(), measuring.Timer()
    (case,) = cases.chosen([asked["case"]], small=asked["tiny"])
    cache, out = Path(asked["cache"]), Path(asked["out"])
    given = material.load(case.shape, cache, case.rows)
    with timer.stage("data"):
        data = fetch(case, given, out)
    with timer.stage("html"):
        page = draw(case, data, out)
    result = {
        "features": len(data),
        "checksum": checksum(case, given),
        "threads": torch.get_num_threads(),
        "files": look_at_files(data, page) if case.files else None,
        "roofline": roofline.measure(case, given, data, material.prepare(case.shape, cache)),
    }
    measuring.report(timer, page, **result)


def fetch(case: Case, given: Material, out: Path) -> MultiFeatureData:
    """The data of the case, written to a folder as it is finished where the case says so."""
    params = FeatureVisParams(
        hook_point=case.shape.hook_point, features=tuple(range(case.features)), verbose=False, **case.options
    )
    more: dict[str, Any] = {"out_dir": out / "features"} if case.folder and _takes(get_feature_data, "out_dir") else {}
    return get_feature_data(given.encoder, given.model, given.tokens, params, **more)


def draw(case: Case, data: MultiFeatureData, out: Path) -> Path:
    """The page of all features; a site, whose features lie in files of their own, where they are too many for one page."""
    save_site = getattr(data, "save_site", None)
    if case.folder and save_site is not None:
        save_site(out / "site")
        return out / "site"
    data.save_html(out / "ours.html")
    return out / "ours.html"


def _takes(function: Any, argument: str) -> bool:
    return argument in inspect.signature(function).parameters


def checksum(case: Case, given: Material) -> float:
    """As ``measuring.checksum`` has it."""
    lm = LanguageModel(given.model)
    with lm.as_for_inference():
        acts = lm.activations(given.tokens[:2], case.shape.hook_point)
        return float(given.encoder.encode(acts).double().sum())


# --- files --------------------------------------------------------------------------------------------------------


def look_at_files(data: MultiFeatureData, page: Path) -> dict[str, float | None]:
    """Sizes of the median feature, and how fast pages are drawn and JSON is written and read."""
    folder = page.parent
    packed = [len(text) for text in _PACKED.findall(page.read_bytes())]
    found: dict[str, float | None] = {
        "html_bytes_median_packed": statistics.median(packed) if packed else None,
        "json_save_s": median_seconds(lambda: data.save_json(folder / "ours.json")),
        "json_load_s": median_seconds(lambda: MultiFeatureData.load_json(folder / "ours.json")),
        "json_bytes": (folder / "ours.json").stat().st_size,
    }
    # One feature is one line; the first line is the header, the last one closes the list.
    lines = (folder / "ours.json").read_bytes().splitlines()[1:-1]
    found["json_gz_bytes_median"] = statistics.median(len(gzip.compress(line.rstrip(b","))) for line in lines)
    data.save_json(folder / "ours.json.gz")
    found["json_gz_bytes"] = (folder / "ours.json.gz").stat().st_size
    return found | render_speed(data, folder / "again.html")


def median_seconds(run: Any) -> float:
    """Wall-clock seconds of a call, the median of three: the first one may wait for memory that the system has never given."""
    return statistics.median(seconds(run) for _ in range(3))


def seconds(run: Any) -> float:
    """Wall-clock seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def render_speed(data: MultiFeatureData, page: Path) -> dict[str, float | None]:
    """Seconds of a page of all features with one process and with two; None for two where the library draws with one only."""
    save: Any = data.save_html
    if not _takes(save, "processes"):
        return {"render_s_one_process": median_seconds(lambda: save(page)), "render_s_two_processes": None}
    one, two = (median_seconds(lambda n=n: save(page, processes=n)) for n in (1, 2))
    return {"render_s_one_process": one, "render_s_two_processes": two}


if __name__ == "__main__":
    main()

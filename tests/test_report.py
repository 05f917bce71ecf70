"""The report of a run: one file that holds its figures, loads nothing, and trusts nothing that a file says."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from smalti.common.errors import UserError
from smalti.common.evaluation_file import evaluation_path, write_evaluation
from smalti.common.folder import sha256, write_json
from smalti.pipeline.generate import Settings as Generation
from smalti.pipeline.generate import generate
from smalti.pipeline.report import MADE, Settings, main, write_report
from smalti.pipeline.reporting.charts import code_use
from smalti.pipeline.reporting.markup import EMPTY, Html, join, number, tag
from smalti.pipeline.reporting.page_head import headline, nats, psnr
from smalti.pipeline.reporting.provenance_sections import elsewhere, stage_commands
from smalti.pipeline.reporting.run_contents import gather, outdated
from smalti.prior.model import load_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.vqvae.model import VQVAE
from tests.widths import beyond_the_window

NASTY = '<script>alert("1")</script>'
STAGES = ("tokenizer", "prior", "pipeline")


class Page(HTMLParser):
    """Read the text and links of a page, and check that each element that begins also ends."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.open, self.loads, self.anchors, self.ids, self.alts = "", [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        self.loads += [value for key, value in given.items() if key in ("src", "srcset", "data", "action")]
        self.anchors += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        self.alts += [given.get("alt")] if name == "img" else []
        assert name not in ("script", "iframe", "link", "object", "form") and not any(
            key.startswith("on") for key in given
        )
        self.open += [] if name in EMPTY else [name]

    def handle_startendtag(self, name, attributes):  # SVG has such tags
        self.handle_starttag(name, attributes)
        self.open.pop()

    def handle_endtag(self, name):
        assert self.open and self.open.pop() == name

    def handle_data(self, text):
        self.text += text


def evaluate(run: Path) -> None:
    """Write figures of every kind, as the three evaluations would."""
    now = {stage: sha256(run / stage / "model/model.safetensors") for stage in ("tokenizer", "prior")}
    classes = [str(i) for i in range(10)]
    figures = {
        "tokenizer": {
            "psnr_pooled": 12.3456,
            "psnr": 13.5,
            "usage": 0.8125,
            "perplexity": 9.87,
            "distortion": 5.4321,
            "uniform_rate": 1.0,
        },
        "prior": {
            "nll": 2.4681,
            "saved": 0.123,
            "by_class": {name: 2.0 + i / 10 for i, name in enumerate(classes)},
            "by_place": (2 + np.arange(16).reshape(4, 4) / 10).tolist(),
        },
        "pipeline": {
            "distortion": 5.4321,
            "uniform_rate": 1.0,
            "independent_rate": 0.9,
            "learned_rate": 0.7531,
            "learned_bits_per_dim": 6.1852,
            "fd_classifier": 3.2109,
            "fd_classifier_train": 1.5,
            "class_agreement": 0.4567,
            "agreement_by_class": dict.fromkeys(classes, 0.5),
            "memorised_pixels": 0.011,
            "memorised_codes": 0.073,
        },
    }
    protocol = {**now, "number": 297, "priced": 297, "drawn": 100, "neighbours": 100, "neighbours_among": 1350}
    for stage, each in figures.items():
        write_evaluation(run, stage, "test", figures=each, protocol=protocol, arguments=[str(run), "--split", "test"])
    # 10 columns of 8 x 8 images, 8 times enlarged
    for what, size in (
        ("samples", (784, 784)),
        ("neighbours", (784, 224)),
    ):
        PIL.Image.new("L", size).save(run / f"evaluation/pipeline-test-{what}.png")


def page_of(run: Path, **settings) -> tuple[Page, str]:
    path = write_report(Settings(run=str(run), **{"completion": False, **settings}))
    html = path.read_text(encoding="utf-8")
    return Page(html), html


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    shutil.copytree(finished_run, tmp_path / "digits")
    return tmp_path / "digits"


@pytest.fixture
def evaluated(run) -> Path:
    evaluate(run)
    return run


@pytest.fixture(scope="module")
def whole(finished_run, runs) -> tuple[Path, Page, str]:
    """Return a complete run and its page. Tests share it: do not change it."""
    run = runs / "report"
    shutil.copytree(finished_run, run)
    evaluate(run)
    return run, *page_of(run, completion=True)


# ----------------------------------------------------------------------------------------------------------- the blocks


def test_text_is_escaped_once_and_markup_is_not():
    assert tag("p", "a < b", tag("b", "&")) == "<p>a &lt; b<b>&amp;</b></p>"
    assert tag("img", alt='"><script>', src=None) == '<img alt="&quot;&gt;&lt;script&gt;">'
    assert isinstance(join("<", None, Html("<br>")), Html) and join("<", None, Html("<br>")) == "&lt;<br>"


def test_numbers_have_the_digits_that_count():
    assert [number(value) for value in (12345, 12.3456, 0.012345, -0.5, 0.0, float("nan"), "a", None)] == [
        "12,345",
        "12.35",
        "0.01235",
        "−0.5000",
        "0.000",
        "nan",
        "a",
        "null",
    ]


def test_a_codebook_of_which_nothing_is_used_can_be_drawn(tmp_path):
    assert code_use(np.zeros((2, 16), dtype=np.int64), ["depth 1", "depth 2"], tmp_path / "use.png").startswith("<svg")
    assert (tmp_path / "use.png").exists()


# ------------------------------------------------------------------------------------------------------------- the page


def test_a_page_is_one_file_that_loads_nothing(whole):
    run, page, html = whole
    assert page.loads and all(each.startswith("data:image/png;base64,") for each in page.loads)
    assert all(each.startswith("#") for each in page.anchors) and not re.search(r"url\((?!#)|@import", html)
    assert len(page.ids) == len(set(page.ids)) and {each[1:] for each in page.anchors} <= set(page.ids)
    assert page.alts and all(page.alts)
    drawn = {path.name for path in (run / "report").iterdir()}
    assert {"bits.png", "prior-nll.png", "prior-places.png", "codebook-use.png", "completion.png"} <= drawn
    assert "lower half is drawn anew" in page.text and "drawn, seed 1" in page.text


def test_a_page_holds_the_figures_of_the_evaluations(whole):
    _, page, _ = whole
    for shown in ("12.35 dB", "81.2%", "6.185", "2.468", "12.3% saved", "3.211", "45.7%", "6.1852", "7.3%", "2.900"):
        assert shown in page.text, shown
    assert "Fréchet distance (classifier)" in page.text and "FID" not in page.text
    assert "Each column is a class" in page.text and "measured with another" not in page.text


def test_the_commands_repeat_the_run_elsewhere_and_say_nothing_of_the_machine(whole):
    run, page, html = whole
    assert str(run.parent) not in html
    lines = page.text[page.text.index("run=") :].splitlines()
    assert lines[:2] == ["run=.../report", "again=.../report-again"]
    assert 'python tokenizer/train.py "$run/tokenizer/config.yaml" --run "$again"' in lines
    assert 'python prior/evaluate.py "$again" --split test' in lines
    assert [line.split()[1] for line in lines if line.startswith("python ")] == [
        "tokenizer/train.py",
        "tokenizer/encode.py",
        "prior/train.py",
        "pipeline/generate.py",
        "tokenizer/evaluate.py",
        "prior/evaluate.py",
        "pipeline/evaluate.py",
        "pipeline/report.py",
    ]


def test_the_command_that_drew_the_samples_is_repeated_with_its_options(evaluated, tmp_path, accelerator):
    run = shutil.copytree(evaluated, tmp_path / "run", ignore=shutil.ignore_patterns("samples", "state"))
    asked = Generation(run=str(run), num_images=6, seed=7, labels=("3", "5"), temperature=0.8)
    generate(asked, accelerator)
    contents = gather(run)
    assert [line["label"] for line in contents.samples()] == ["3", "5"] * 3
    (drawing,) = [line for line in stage_commands(contents) if "generate.py" in line]
    assert drawing.endswith('"$again" --num-images 6 --seed 7 --labels 3 5 --temperature 0.8')


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python tokenizer/evaluate.py runs/report --split test", 'python tokenizer/evaluate.py "$again" --split test'),
        ("python tokenizer/evaluate.py --split test", 'python tokenizer/evaluate.py --split test "$again"'),
        ("python a.py .../was-renamed --images 5", 'python a.py "$again" --images 5'),
        ("python a.py --source x/report --run runs/report", 'python a.py --source x/report --run "$again"'),
        ("python a.py .../report --label 'two words'", "python a.py \"$again\" --label 'two words'"),
        ("python a.py .../report --label it's", "python a.py \"$again\" --label 'it'\"'\"'s'"),
    ],
)
def test_a_recorded_command_is_repeated_on_the_new_run_word_for_word(whole, command, expected):
    assert elsewhere(gather(whole[0]), command) == expected


def test_figures_of_other_weights_are_told(evaluated):
    assert not list(outdated(gather(evaluated)))
    path = evaluation_path(evaluated, "prior", "test")
    value = json.loads(path.read_text())
    value["protocol"]["prior"] = "0" * 64
    path.write_text(json.dumps(value))
    (told,) = outdated(gather(evaluated))
    assert "The prior's figures on the test split were measured with another prior" in told


@pytest.fixture
def retrained(run) -> Path:
    """Return a run whose tokenizer was trained anew, beside the codes and the prior of the one before."""
    VQVAE(load_tokenizer(run / "tokenizer/model").config).save_pretrained(run / "tokenizer/model")
    evaluate(run)
    (run / "evaluation/tokenizer-test.json").unlink()
    return run


def test_codes_and_a_prior_of_another_tokenizer_are_left_out_of_the_large_figures(retrained):
    """PSNR and usage of the old codes and the old prior's nats stood beside the new tokenizer's reconstructions."""
    contents = gather(retrained)
    assert contents.codes is None and contents.prior is None and set(contents.others) == {"codes", "prior"}
    assert psnr(contents)[1] == "pooled, validation split, in training" and nats(contents) is None
    assert "nats per code" not in [figure.title for figure in headline(contents)]


def test_a_page_says_what_is_of_another_tokenizer_and_what_makes_it_anew(retrained):
    page, _ = page_of(retrained)
    assert "The codes of this run are of another tokenizer, digits/tokenizer (sha256 " in page.text
    assert "remove .../digits/codes, and python tokenizer/encode.py .../digits makes one for this" in page.text
    assert "The prior of this run is of another tokenizer" in page.text and "2.468" not in page.text
    assert "Of a prior over the codes of another tokenizer, digits/tokenizer (sha256 " in page.text


def test_a_prior_of_other_codes_than_the_runs_is_left_out_where_there_is_no_tokenizer(run):
    path = run / "codes/codes.json"
    value = json.loads(path.read_text())
    value["tokenizer"] = {"name": "another", "sha256": "f" * 64}
    write_json(path, value)
    shutil.rmtree(run / "tokenizer")
    contents = gather(run)
    assert contents.codes is not None and contents.prior is None and nats(contents) is None


def test_what_is_read_for_a_prior_is_what_goes_with_the_prior(retrained):
    contents = gather(retrained, about="prior")
    assert contents.codes is not None and contents.prior is not None and nats(contents)[0] == 2.4681
    assert contents.model is None and set(contents.settings) == {"prior"} and set(contents.others) == {"tokenizer"}


def test_images_that_other_weights_drew_are_not_shown(run, accelerator):
    generate(Generation(run=str(run), num_images=2), accelerator)
    assert "drawn by pipeline/generate.py" in page_of(run)[0].text
    VQVAE(load_tokenizer(run / "tokenizer/model").config).save_pretrained(run / "tokenizer/model")
    text = page_of(run)[0].text
    assert "What was drawn is not of the run's present weights" in text and "drawn by pipeline/generate.py" not in text


def test_drawn_images_that_were_measured_with_other_sampling_settings_are_told(evaluated):
    """After pipeline/tune.py the page would show new settings beside figures of the old ones."""
    kept = SamplingConfig()
    write_json(evaluated / "pipeline/generation_config.json", kept.model_dump(mode="json"))
    path, prior = evaluation_path(evaluated, "pipeline", "test"), load_prior(evaluated / "prior/model")
    for sampling, remarks in ((kept, 0), (kept.model_copy(update={"temperature": 0.123}), 1)):
        value = json.loads(path.read_text())
        value["protocol"]["sampling"] = prior.heeded(sampling)
        path.write_text(json.dumps(value))
        assert len([each for each in outdated(gather(evaluated)) if "had other sampling settings" in each]) == remarks


def test_the_psnr_that_is_shown_large_is_the_pooled_one_or_says_that_it_is_not(evaluated):
    assert psnr(gather(evaluated)) == (12.3456, "pooled, test split, 297 images")
    write_evaluation(evaluated, "tokenizer", "test", figures={"psnr": 33.333}, protocol={"number": 297}, arguments=[])
    for file in ("codes/codes.json", "tokenizer/metrics.jsonl"):  # a run of an earlier version has no pooled PSNR
        (evaluated / file).write_text((evaluated / file).read_text().replace("psnr_pooled", "psnr_unknown"))
    assert psnr(gather(evaluated)) == (33.333, "mean over images, test split, 297 images")


def test_a_page_is_of_the_split_it_is_asked_for(evaluated):
    write_evaluation(evaluated, "tokenizer", "validation", figures={"psnr": 33.333}, protocol={}, arguments=[])
    assert gather(evaluated).value("tokenizer", "psnr") == 13.5
    assert gather(evaluated, "validation").value("tokenizer", "psnr") == 33.333
    with pytest.raises(UserError, match="no evaluation of split 'tset'; there are some of test, validation"):
        gather(evaluated, "tset")


def test_what_is_missing_names_the_command_that_fills_it(run):
    page, _ = page_of(run)
    for command in (
        "pipeline/generate.py",
        "tokenizer/evaluate.py",
        "prior/evaluate.py",
        "pipeline/evaluate.py",
        "tokenizer/codebook.py",
    ):
        assert re.search(rf"python {command} \S+ fills this in", page.text), command


@pytest.mark.parametrize(("left", "command"), [("tokenizer", "prior/train.py"), ("prior", "tokenizer/train.py")])
def test_a_run_of_one_stage_has_a_page_too(run, left, command, capsys):
    for name in {"tokenizer", "codes", "prior"} - {left}:
        shutil.rmtree(run / name)
    main([str(run)])
    assert f"the page is {run}/report.html" in capsys.readouterr().out
    assert re.search(rf"python {command} CONFIG --run \S+ fills this in", Page((run / "report.html").read_text()).text)


def test_names_from_files_are_text_and_nothing_else(evaluated):
    for path in (evaluated / "codes/codes.json", evaluated / "prior/model/config.json"):
        value = json.loads(path.read_text())
        value["condition"]["names"][3] = NASTY
        path.write_text(json.dumps(value))
    path = evaluation_path(evaluated, "prior", "test")
    value = json.loads(path.read_text())
    value["figures"]["by_class"][NASTY] = 1.0
    value["figures"][NASTY] = 1.0
    value["commit"] = value["command"] = value["date"] = value["machine"]["cpu"] = NASTY
    path.write_text(json.dumps(value))
    page, html = page_of(evaluated)
    assert "<script" not in html and page.text.count(NASTY) >= 7


# ------------------------------------------------------------------------------------------------------------ bad input


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no run folder"):
        page_of(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"must be a run folder, with tokenizer/config\.yaml or prior/config\.yaml"):
        page_of(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evaluation/prior-test.json", "{", "cannot be read as JSON"),
        (
            "evaluation/prior-test.json",
            '{"kind": "smalti.evaluation", "format": 1, "stage": ""}',
            "no split of type str",
        ),
        ("evaluation/pipeline-test-samples.png", "no picture", "must be a whole picture"),
        ("tokenizer/histogram.json", '{"counts": [1, 2]}', "a list of whole numbers for each codebook"),
        ("tokenizer/config.yaml", "- a", "must hold `key: value` lines"),
    ],
)
def test_a_damaged_file_is_named_and_an_older_page_stays(evaluated, file, text, message):
    (evaluated / "report.html").write_text(f"older. {MADE}")
    (evaluated / "tokenizer/metrics.jsonl").unlink()  # it draws fewer curves before it reaches the damage
    (evaluated / file).write_text(text)
    with pytest.raises(UserError, match=message):
        page_of(evaluated)
    assert (evaluated / "report.html").read_text() == f"older. {MADE}"
    assert not list(evaluated.glob(".report.html*"))


def test_nothing_of_the_page_is_wider_than_the_window(whole, browser):
    opened = browser.new_page()
    opened.goto((whole[0] / "report.html").as_uri())
    opened.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
    assert beyond_the_window(opened) == []
    opened.close()

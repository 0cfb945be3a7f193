"""People who judge: agreement against the packages that are known, blinding, marks that survive, and a real browser."""

import csv
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from finetuning.instruction import human_eval
from finetuning.instruction.human_eval import Config
from finetuning.instruction.scoring.agreement import cohens_kappa, krippendorffs_alpha
from finetuning.instruction.scoring.answers import Answered
from finetuning.instruction.scoring.marks_report import summarise
from finetuning.instruction.scoring.rating_page import RatingServer
from finetuning.instruction.scoring.study import CRITERIA, Study, cell, check_name
from utils.files import InputError

CHROMIUM = Path("/usr/bin/chromium")
SCRIPT = "<script>document.title='taken over'</script>"
GOOD, BAD = "A good answer.", f"{SCRIPT} <b>bad</b>"


def marks_of(level: int) -> dict[str, int]:
    return dict.fromkeys(CRITERIA, level)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    lines = [
        {"number": n, "category": "xy"[n % 2], "question": f"Question {n}? {SCRIPT}", "reference": "",
         "answers": {"before": f"{BAD} {n}", "after": f"{GOOD} {n}"}}
        for n in range(6)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def study(answers: Path, tmp_path: Path) -> Study:
    questions = [Answered(**json.loads(line)) for line in answers.read_text(encoding="utf-8").splitlines()]
    return Study.open(tmp_path / "study", 0, questions)


@contextmanager
def serving(study: Study) -> Iterator[RatingServer]:
    with RatingServer(study) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_what_the_packages_say(seed: int) -> None:
    chance = np.random.default_rng(seed)
    truth = chance.integers(1, 6, 40)
    marks = np.clip(truth + chance.integers(-1, 2, (3, 40)), 1, 5).astype(float)
    for weighted, weights in ((True, "quadratic"), (False, None)):
        ours = cohens_kappa(marks[0], marks[1], is_weighted=weighted)
        assert ours == pytest.approx(cohen_kappa_score(marks[0], marks[1], weights=weights))
    marks[chance.random(marks.shape) < 0.3] = np.nan
    theirs = krippendorff.alpha(reliability_data=marks, level_of_measurement="ordinal")
    assert krippendorffs_alpha(marks) == pytest.approx(theirs)


def test_agreement_by_hand_and_at_its_ends() -> None:
    # of 10 answers they agree on 8; by chance .6 * .6 + .4 * .4 = .52 of them
    one, other = [1] * 6 + [2] * 4, [1] * 5 + [2] * 4 + [1]
    assert cohens_kappa(one, other, is_weighted=False) == pytest.approx((0.8 - 0.52) / (1 - 0.52))
    assert cohens_kappa([1, 2, 3], [1, 2, 3]) == 1
    assert krippendorffs_alpha(np.array([[1.0, 2, 3], [1, 2, 3]])) == 1
    nothing = [
        cohens_kappa([3, 3], [3, 3]),
        cohens_kappa([np.nan], [1]),
        krippendorffs_alpha(np.full((2, 3), 3.0)),
        krippendorffs_alpha(np.array([[1, np.nan], [np.nan, 2]])),
        krippendorffs_alpha(np.empty((0, 0))),
    ]
    assert np.isnan(nothing).all()


def test_raters_see_other_orders_and_no_names(study: Study) -> None:
    assert sorted(study.order("anna")) == list(range(6))
    assert study.order("anna") == study.order("anna") != study.order("ben")
    firsts = [study.blinded("anna", question)["A"] for question in range(6)]
    assert set(firsts) == {"before", "after"}
    with serving(study) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", "/?rater=anna")
        page = connection.getresponse().read().decode()
    assert "before" not in page
    assert "after" not in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_marks_are_kept_and_a_torn_line_is_forgotten(study: Study) -> None:
    given = {"before": marks_of(2), "after": marks_of(4)}
    study.add("anna", 3, given)
    path = study.folder / "marks_anna.jsonl"
    with path.open("ab") as file:
        file.write(b'{"question": 4, "ma')
    assert study.marks("anna") == {3: given}
    study.add("anna", 3, {**given, "after": marks_of(5)})
    assert study.marks("anna") == {3: {**given, "after": marks_of(5)}}
    assert len(path.read_bytes().splitlines()) == 2
    for wrong in ({"before": marks_of(2)}, {**given, "after": marks_of(6)}, {**given, "after": {}}, []):
        with pytest.raises(InputError, match="must be"):
            study.add("anna", 0, wrong)
    path.write_bytes(b"{}\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        study.marks("anna")


def test_a_sheet_is_read_when_it_is_filled_in(study: Study, answers: Path) -> None:
    config = Config(out=study.folder, report=True)
    assert human_eval.main(Config(out=study.folder, sheets=("Anna",))) is None
    path = study.folder / "sheet_anna.csv"
    with pytest.raises(InputError, match="may have been filled in"):
        human_eval.main(Config(out=study.folder, sheets=("anna",)))
    assert human_eval.main(config)["raters"] == {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))

    def write(rows: list[dict[str, str]]) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    for row in rows[:6]:
        row |= dict.fromkeys(CRITERIA, "5" if GOOD in row["answer"] else "1")
    write(rows)
    for _ in range(2):
        result = human_eval.main(config)
        assert result["raters"] == {"anna": 3}
    assert result["means"]["after"]["overall"]["value"] == 5
    assert result["means"]["before"]["overall"]["value"] == 1
    assert len((study.folder / "marks_anna.jsonl").read_bytes().splitlines()) == 3
    for change, message in [
        ({"safety": "6"}, "safety must be from 1 to 5, got 6"),
        ({"safety": ""}, "safety must be from 1 to 5, got None"),
        ({"safety": "good"}, "row 2 cannot be used: invalid literal"),
        ({"question": "77"}, "row 2 cannot be used: there is no question 77"),
        ({"letter": "Z"}, "row 2 cannot be used: 'Z'"),
    ]:
        write([{**rows[0], **change}, *rows[1:]])
        with pytest.raises(InputError, match=message):
            human_eval.main(config)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="no CSV in UTF-8"):
        human_eval.main(config)
    assert cell("=1+1") == "'=1+1"


def test_a_study_goes_on_and_no_other_takes_its_place(answers: Path, tmp_path: Path) -> None:
    config = Config(answers=answers, out=tmp_path / "out", n=4, report=True)
    assert human_eval.main(config)["n_questions"] == 4
    assert human_eval.main(config) == human_eval.main(Config(out=tmp_path / "out", report=True))
    with pytest.raises(InputError, match="holds a study of other questions"):
        human_eval.main(Config(answers=answers, out=tmp_path / "out", n=5, report=True))
    with pytest.raises(InputError, match=r"holds no study.json: begin a study with --answers"):
        human_eval.main(Config(out=tmp_path / "new", report=True))
    (tmp_path / "out" / "study.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        human_eval.main(Config(out=tmp_path / "out", report=True))
    (tmp_path / "out" / "letter.txt").touch()
    with pytest.raises(InputError, match="holds letter.txt, which is not ours"):
        human_eval.main(config)
    for name in ("", "a/b", "..", "x" * 41, "ü"):
        with pytest.raises(InputError, match="a rater's name must be"):
            check_name(name)


def test_means_wins_and_agreement_by_hand(study: Study) -> None:
    for question in range(4):
        study.add("anna", question, {"before": marks_of(2), "after": marks_of(4)})
        study.add("ben", question, {"before": marks_of(3), "after": marks_of(3 if question else 5)})
    result = summarise(study)
    assert result["means"]["before"]["accuracy"] == {"value": 2.5, "low": 2.5, "high": 2.5, "n": 4}
    assert result["means"]["after"]["overall"]["value"] == pytest.approx((4.5 + 3 * 3.5) / 4)
    (wins,) = result["wins"]
    # anna prefers "after" in all four questions, ben in one, and calls the others equal
    assert wins["value"] == pytest.approx((100 + 3 * 75) / 4)
    assert result["kappa"][0]["n"] == 8
    marks = np.array([[2, 4] * 4, [3, 5, 3, 3, 3, 3, 3, 3]], dtype=float)
    expected = krippendorff.alpha(reliability_data=marks, level_of_measurement="ordinal")
    assert result["alpha"]["safety"] == pytest.approx(expected)


def test_what_does_not_come_from_the_page_is_refused(study: Study) -> None:
    form = {"rater": "eve", "question": "0"}
    form |= {f"{letter}_{criterion}": "5" for letter in "AB" for criterion in CRITERIA}
    with serving(study) as server:
        host = f"127.0.0.1:{server.server_port}"

        def send(method: str, path: str, body: str = "", **headers: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request(method, path, body, {"Host": host, **headers})
            return connection.getresponse()

        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
            assert send("GET", "/?rater=eve", **headers).status == 403
            assert send("POST", "/marks", urlencode(form), **headers).status == 403
        assert send("GET", "/../etc/passwd").status == 404
        assert send("POST", "/other", urlencode(form)).status == 400
        assert send("POST", "/marks", urlencode(form), **{"Content-Length": "999999999"}).status == 400
        assert send("POST", "/marks", urlencode({**form, "rater": "../x"})).status == 400
        assert send("POST", "/marks", urlencode({**form, "question": "9"})).status == 400
        incomplete = send("POST", "/marks", urlencode({**form, "A_safety": "9"})).read().decode()
        assert "missing: A, safety" in incomplete
        assert incomplete.count(" checked") == 7
        assert study.raters() == []
        assert "a rater&#x27;s name must be" in send("GET", "/?rater=%3Cb%3E").read().decode()
        done = send("POST", "/marks", urlencode(form), Origin=f"http://{host}")
        assert (done.status, done.headers["Location"]) == (303, "/?rater=eve")
        assert done.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert list(study.marks("eve")) == [0]
        with pytest.raises(InputError, match="choose another --port"):
            RatingServer(study, server.server_port)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no chromium")
def test_two_raters_in_a_real_browser(study: Study) -> None:
    """Anna marks all questions with one interruption, Ben some; what they saw is what is stored."""
    from playwright.sync_api import Page, sync_playwright

    def send(page: Page) -> None:
        with page.expect_navigation():  # the click alone does not wait until the marks have arrived
            page.get_by_role("button").click()

    def mark(page: Page, level: dict[str, int]) -> None:
        for section in page.locator("section").all():
            said = section.locator(".text").inner_text()
            for criterion in CRITERIA:
                value = level["good" if GOOD in said else "bad"]
                section.locator(f"input[name$={criterion}][value='{value}']").check()
        send(page)

    def begin(page: Page, url: str, name: str) -> None:
        page.goto(url)
        page.get_by_label("Your name").fill(name)
        send(page)

    with serving(study) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        asked: list[str] = []
        context = browser.new_context(viewport={"width": 390, "height": 844})
        context.set_default_timeout(60_000)  # on a machine that others use too
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        begin(page, server.url, "Anna")
        assert page.title() == "Question 1 of 6"
        page.get_by_role("button").click()
        assert page.title() == "Question 1 of 6"  # the form is not complete
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for _ in range(2):
            mark(page, {"good": 5, "bad": 2})
        page.close()
        page = context.new_page()
        begin(page, server.url, "anna")
        assert page.title() == "Question 3 of 6"
        with page.expect_navigation():
            page.get_by_role("link", name="Back").click()
        assert page.locator("input:checked").count() == 8
        mark(page, {"good": 4, "bad": 2})
        while page.title() != "Done":
            mark(page, {"good": 5, "bad": 2})
        begin(page, server.url, "ben")
        for _ in range(3):
            mark(page, {"good": 4, "bad": 1})
        browser.close()
    assert {url.split("?")[0] for url in asked} <= {server.url, f"{server.url}style.css", f"{server.url}marks"}
    result = summarise(study)
    assert result["raters"] == {"anna": 6, "ben": 3}
    assert result["means"]["after"]["overall"]["n"] == 6
    assert result["means"]["after"]["overall"]["value"] > 4
    assert result["means"]["before"]["overall"]["value"] <= 2
    assert (result["wins"][0]["first"], result["wins"][0]["value"]) == ("after", 100)
    second = study.order("anna")[1]
    assert study.marks("anna")[second]["after"] == marks_of(4)
    assert result["kappa"][0]["weighted"]["accuracy"] > 0.7

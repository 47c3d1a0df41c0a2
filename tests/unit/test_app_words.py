"""Which words weigh most, and how many rows the app takes: without a browser."""

import numpy as np
import pytest

from snugtune.errors import UserInputError
from snugtune.serve.web.words import MOST_PIECES, word_weights

pytest.importorskip("gradio", reason="pip install 'snugtune[app]'")


class Counts:
    """Probabilities (N, 2) that rise with each ``lost`` in a text; keeps how many texts it was asked for."""

    def __init__(self):
        self.asked = 0

    def probabilities(self, texts):
        self.asked += len(texts)
        lost = np.array([sum("lost" in word for word in text.split()) for text in texts], np.float64)
        fine = np.array([text.split().count("fine") for text in texts], np.float64)
        p = 1 / (1 + np.exp(-(2 * lost - fine)))
        return np.stack([1 - p, p], axis=1)


def test_the_pieces_are_the_text_and_weigh_what_leaving_them_out_takes():
    text = "  my card\nis lost,  fine lost "
    pieces = word_weights(Counts(), text, 1)
    assert "".join(piece.text for piece in pieces) == text
    weights = {piece.text.strip(): piece.weight for piece in pieces}
    assert weights["card"] == pytest.approx(0)
    assert weights["lost"] == pytest.approx(2)
    assert weights["fine"] == pytest.approx(-1)
    against = {piece.text.strip(): piece.weight for piece in word_weights(Counts(), text, 0)}
    assert against["lost"] == pytest.approx(-2)


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_a_text_without_words_has_no_pieces(text):
    predictor = Counts()
    assert word_weights(predictor, text, 0) == []
    assert predictor.asked == 0


@pytest.mark.parametrize("n_words", [1, MOST_PIECES, MOST_PIECES + 1, 5_000])
def test_a_long_text_takes_no_more_passes(n_words):
    predictor, text = Counts(), " ".join(["word"] * n_words)
    pieces = word_weights(predictor, text, 1)
    assert predictor.asked == len(pieces) + 1 <= MOST_PIECES + 1
    assert "".join(piece.text for piece in pieces) == text


def test_certainty_is_a_number_all_the_same():
    class Certain:
        def probabilities(self, texts):
            return np.array([[0.0, 1.0]] * len(texts))

    (piece,) = word_weights(Certain(), "lost", 1)
    assert piece.weight == 0


HOSTILE = ["\u202egnitirw\u202c", "a\x00b", "<b>x</b>", "👩\u200d👧 नमस्ते", "x" * 1_000_000]


@pytest.mark.parametrize("text", HOSTILE, ids=["bidi", "null", "html", "joined", "1 MB"])
def test_any_text_is_taken_apart_and_put_together_again(text):
    assert "".join(piece.text for piece in word_weights(Counts(), text, 0)) == text


def test_what_the_words_show_is_escaped_and_keeps_its_direction():
    from snugtune.serve.web.shown import words_html

    html = words_html(word_weights(Counts(), "<script>alert(1)</script> \u202elost ${x}", 1), "<i>Card</i>")
    assert "<script>" not in html
    assert "<i>" not in html
    assert "${" not in html
    # What turns the direction of writing ends where the word does, in the list of words.
    assert "<bdi>\u202elost</bdi>" in html


@pytest.mark.parametrize(("rows", "is_taken"), [(5, True), (6, False)])
def test_max_rows_is_the_most_that_is_predicted(tmp_path, rows, is_taken):
    from snugtune.serve.web.blocks import _Bar

    bar = _Bar(lambda *_, **__: None, most_rows=5)
    if is_taken:
        bar.phase("predict", rows)
    else:
        with pytest.raises(UserInputError, match="6 rows and this page takes 5"):
            bar.phase("predict", rows)


def test_the_options_of_the_command_are_the_app_s_limits(monkeypatch, tmp_path):
    """``--max-upload-mb`` and ``--max-rows`` arrive in the settings, in bytes and rows."""
    from typer.testing import CliRunner

    from snugtune.cli import app
    from snugtune.serve.web import application

    seen = {}

    def create_app(_run, _predictor, settings):
        seen.update(upload=settings.most_upload_bytes, rows=settings.most_rows)
        raise UserInputError("enough is known")

    monkeypatch.setattr(application, "create_app", create_app)
    monkeypatch.setattr("snugtune.predict.predictor.Predictor.load", classmethod(lambda cls, *_, **__: None))
    arguments = ["app", str(tmp_path), "--port", "0", "--max-upload-mb", "3", "--max-rows", "7"]
    done = CliRunner().invoke(app, arguments)
    assert "enough is known" in str(done.exception)
    assert seen == {"upload": 3 * 2**20, "rows": 7}
    for bad in (["--max-upload-mb", "0"], ["--max-rows", "0"], ["--max-rows", "many"]):
        assert CliRunner().invoke(app, ["app", str(tmp_path), *bad]).exit_code == 2

"""kaggle/download.py with a stand-in for the `kaggle` command, which behaves as versions 2.0 to 2.2 do."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
from kaggle_runs import SLUG, load_script
from test_pipeline import write_settings

from kfold.errors import UserError
from kfold.kaggle.download import MARKER, SCRATCH

FILES = {
    "train.csv": "image_id,label\na,1\n",
    "sample_submission.csv": "image_id,label\nb,0\n",
    "train_images/a.png": "x",
}
STAND_IN = """#!{python} -S
import json, pathlib, shutil, sys
words = sys.argv[1:]
here = pathlib.Path(__file__).parent
(here / "words.json").write_text(json.dumps(words))
answer = json.loads((here / "answer.json").read_text())
if answer["code"] == 0:
    folder = pathlib.Path(next(word for word in words if word.startswith("--path=")).removeprefix("--path="))
    target = folder / (words[2] + ".zip")
    if target.exists() and "--force" not in words:
        print(target.name + ": Skipping, found more recently modified local copy (use --force to force download)")
    else:
        shutil.copy(here / "archive.zip", target)
print(answer["said"])
sys.exit(answer["code"])
"""


download = load_script("download")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "with a space"
    write_settings(root, "multiclass")
    with (root / "competition.yaml").open("a") as file:
        file.write(f"kaggle_competition: {SLUG}\n")
    return root


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """kaggle(said, code, files) installs the stand-in; the path where it notes its words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(said: str = "Downloading", code: int = 0, files: dict[str, str] = FILES) -> Path:
        (folder / "kaggle").write_text(STAND_IN.format(python=sys.executable))
        (folder / "kaggle").chmod(0o755)
        (folder / "answer.json").write_text(json.dumps({"said": said, "code": code}))
        with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return folder / "words.json"

    return install


def files_of(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_the_competitions_files_lie_in_data_and_nothing_else(root, kaggle, capsys):
    notes = kaggle()
    download.main(root=root)
    assert files_of(root / "data") == {**FILES, MARKER: SLUG + "\n"}
    words = json.loads(notes.read_text())
    assert words == ["competitions", "download", SLUG, f"--path={root / 'data' / SCRATCH}"]
    output = capsys.readouterr().out
    assert "competition.yaml names test_images, which is not there" in output
    assert output.splitlines()[-1] == "next: python make_folds.py --check"


def test_a_second_time_nothing_is_asked_for(root, kaggle, capsys):
    notes = kaggle()
    download.main(root=root)
    notes.unlink()
    download.main(root=root)
    assert not notes.exists()
    assert "already" in capsys.readouterr().out


@pytest.mark.parametrize("owner", ["", "another-one"])
def test_other_data_stays_as_it_is_and_no_byte_is_downloaded(root, kaggle, owner):
    notes = kaggle()
    (root / "data").mkdir()
    (root / "data" / "train.csv").write_text("mine")
    if owner:
        (root / "data" / MARKER).write_text(owner)
    with pytest.raises(UserError, match=r"holds other data \(train\.csv\).*--into.*--overwrite"):
        download.main(root=root)
    assert not notes.exists()
    assert (root / "data" / "train.csv").read_text() == "mine"
    download.main(root=root, overwrite=True)
    assert (root / "data" / "train.csv").read_text() == FILES["train.csv"]


def test_a_download_that_was_stopped_goes_on(root, kaggle, monkeypatch):
    """After the archive came, and with some of its files in place."""
    kaggle()
    with monkeypatch.context() as patch:
        patch.setattr(download.unpack, "main", stop)
        with pytest.raises(KeyboardInterrupt):
            download.main(root=root)
    (root / "data" / "train.csv").write_text(FILES["train.csv"])
    download.main(root=root)
    assert files_of(root / "data") == {**FILES, MARKER: SLUG + "\n"}


def stop(*_arguments) -> None:
    raise KeyboardInterrupt


def test_the_competition_can_be_named_and_lie_elsewhere(root, kaggle, tmp_path):
    notes = kaggle()
    download.main("other-one", into=tmp_path / "elsewhere", root=root)
    assert json.loads(notes.read_text())[2] == "other-one"
    assert (tmp_path / "elsewhere" / "train.csv").exists()
    assert not (root / "data").exists()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("401 Client Error: Unauthorized for url", "make a new one at kaggle.com/settings"),
        ("OSError: Could not find kaggle.json. Make sure it's located in", "make a new one at kaggle.com/settings"),
        ("403 - Forbidden - Permission 'competitions.get' was denied", f"kaggle.com/competitions/{SLUG}/rules"),
        ("404 Client Error: Not Found for url", "there is no such competition"),
        ("400 Client Error: Bad Request", f"join the competition at kaggle.com/competitions/{SLUG}"),
        ("429 Client Error: Too Many Requests", "wait some minutes"),
        ("something new", f"(something new): look at kaggle.com/competitions/{SLUG}/data"),
    ],
)
def test_what_kaggle_refuses_is_one_line_with_the_remedy(root, kaggle, said, expected):
    kaggle(said, code=1)
    with pytest.raises(UserError) as caught:
        download.main(root=root)
    (line,) = caught.value.problems
    assert expected in line
    kaggle()
    download.main(root=root)  # what the refusal left behind is in nobody's way
    assert (root / "data" / "train.csv").exists()


def test_no_key_of_the_environment_is_printed(root, kaggle, monkeypatch, capsys):
    monkeypatch.setenv("KAGGLE_KEY", "0123456789abcdef")
    kaggle("GET https://user:0123456789abcdef@example.com failed", code=1)
    with pytest.raises(UserError) as caught:
        download.main(root=root)
    captured = capsys.readouterr()
    assert "***" in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value) + captured.out + captured.err


def test_an_archive_that_leads_out_of_data_is_refused_by_name(root, kaggle):
    kaggle(files={"../outside.csv": "x", **FILES})
    with pytest.raises(UserError, match=r"outside\.csv"):
        download.main(root=root)
    assert not (root / "outside.csv").exists()
    assert not (root / "data" / "train.csv").exists()


def test_without_the_command_or_a_competition_it_says_what_to_do(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match="pip install kaggle, or download it at kaggle.com/competitions/digits-2026/data"
    ):
        download.main(root=root)
    write_settings(root, "multiclass")
    with pytest.raises(UserError, match="kaggle_competition must be .*, but it is empty"):
        download.main(root=root)


@pytest.mark.parametrize(
    ("word", "settings", "where"),
    [
        ("a/../b", f"kaggle_competition: {SLUG}", "the competition must"),
        ("--help", f"kaggle_competition: {SLUG}", "the competition must"),
        ("", "kaggle_competition: a/b", "competition.yaml: kaggle_competition must"),
        ("", "", "competition.yaml: kaggle_competition must .* but it is empty"),
    ],
)
def test_what_is_no_address_is_refused_where_it_was_written(tmp_path, kaggle, word, settings, where):
    notes = kaggle()
    write_settings(tmp_path, "multiclass")
    with (tmp_path / "competition.yaml").open("a") as file:
        file.write(settings + "\n")
    with pytest.raises(UserError, match=f"^{where}"):
        download.main(word, root=tmp_path)
    assert not notes.exists()

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qinfer.errors import ConfigError, ModelNotFound, SetupError
from qinfer.repository import Repository
from qinfer.repository.files import MAX_CONFIG_BYTES

from .models import MINIMAL, fault, only, write_model


def test_a_model(tmp_path: Path) -> None:
    write_model(tmp_path, versions=("1", "2", "10", "03", "x"))
    entry = only(tmp_path)
    assert (entry.name, entry.directory) == ("m", tmp_path.resolve() / "m")
    assert entry.available == (1, 2, 10)
    assert entry.versions == (10,)
    assert entry.config.name == "m"
    assert entry.config.source == str(entry.directory / "config.pbtxt")
    assert entry.config.max_batch_size_given
    assert Repository(tmp_path).load("m") == entry


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("latest { num_versions: 1 }", (10,)),
        ("latest { num_versions: 2 }", (2, 10)),
        ("latest { num_versions: 9 }", (1, 2, 10)),
        ("all {}", (1, 2, 10)),
        ("specific { versions: [ 10, 1 ] }", (1, 10)),
    ],
)
def test_version_policies(tmp_path: Path, policy: str, versions: tuple[int, ...]) -> None:
    write_model(tmp_path, config=MINIMAL + f"version_policy {{ {policy} }}", versions=("1", "2", "10"))
    assert only(tmp_path).versions == versions


def test_one_broken_model_does_not_stop_the_others(tmp_path: Path) -> None:
    write_model(tmp_path, "good")
    write_model(tmp_path, "bad", "max_batch_size: x")
    write_model(tmp_path, "empty", versions=())
    entries, problems = Repository(tmp_path).scan()
    assert [entry.name for entry in entries] == ["good"]
    assert [problem.model for problem in problems] == ["bad", "empty"]
    assert problems[0].path == tmp_path.resolve() / "bad"
    assert all(isinstance(problem.error, ConfigError) for problem in problems)
    with pytest.raises(ConfigError, match="max_batch_size: found x"):
        Repository(tmp_path).load("bad")
    with pytest.raises(ModelNotFound, match="no model 'other'"):
        Repository(tmp_path).load("other")
    with pytest.raises(ModelNotFound):
        Repository(tmp_path / "good").load("../good")


def test_what_is_no_model_is_passed_over(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").touch()
    only(tmp_path)


@pytest.mark.parametrize(
    ("filename", "backend", "platform"),
    [
        ("model.onnx", "onnxruntime", "onnxruntime_onnx"),
        ("model.pt", "torch", "pytorch_libtorch"),
        ("model.pt2", "torch", "pytorch_libtorch"),
        ("model.py", "python", "python"),
    ],
)
def test_without_a_configuration_the_latest_version_tells_the_backend(
    tmp_path: Path, filename: str, backend: str, platform: str
) -> None:
    directory = write_model(tmp_path, config=None, versions=("1", "2"))
    (directory / "2" / filename).touch()
    config = only(tmp_path).config
    assert (config.name, config.backend, config.platform) == ("m", backend, platform)
    assert not config.max_batch_size_given


@pytest.mark.parametrize(
    ("config", "backend", "platform"),
    [
        ('platform: "onnxruntime_onnx"', "onnxruntime", "onnxruntime_onnx"),
        ('platform: "pytorch_libtorch"', "torch", "pytorch_libtorch"),
        ('backend: "pytorch"', "torch", "pytorch_libtorch"),
        ('backend: "torch"', "torch", "pytorch_libtorch"),
        ('platform: "tensorrt_plan"', "tensorrt", "tensorrt_plan"),
        ('backend: "mine" platform: "anything"', "mine", "anything"),
        ('backend: "mine"', "mine", "mine"),
        ('default_model_filename: "net.onnx"', "onnxruntime", "onnxruntime_onnx"),
    ],
)
def test_names_of_backends(tmp_path: Path, config: str, backend: str, platform: str) -> None:
    write_model(tmp_path, config=config, files=("net.onnx",))
    found = only(tmp_path).config
    assert (found.backend, found.platform) == (backend, platform)


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ("", (), "m/config.pbtxt: backend: not given, and the version's files do not tell; expected backend"),
        (
            "",
            ("model.onnx", "model.pt"),
            "not given, and model.onnx and model.pt are both there; expected one",
        ),
        ('default_model_filename: "a.bin"', ("a.bin",), "backend: not given, and a.bin does not tell"),
        (
            'platform: "caffe"',
            (),
            "m/config.pbtxt: 1:1: platform: unknown platform caffe; expected backend, or",
        ),
        (
            'backend: "python" platform: "pytorch_libtorch"',
            (),
            "1:19: platform: pytorch_libtorch is a platform of backend pytorch, but backend is python",
        ),
        (
            'name: "n" backend: "python"',
            (),
            "m/config.pbtxt: 1:1: name: found 'n'; expected 'm', the name of its",
        ),
        (
            MINIMAL + "version_policy { specific { versions: [ 1, 7 ] } }",
            (),
            "6:44: version_policy.specific.versions[1]: found 7, which has no directory; expected one of 1",
        ),
        (
            MINIMAL + 'default_model_filename: "net.py"',
            (),
            "default_model_filename: found 'net.py', but m/1/net.py does not exist; expected a file there",
        ),
        (
            MINIMAL + 'default_model_filename: "../2/a"',
            (),
            "found '../2/a'; expected the name of a file below",
        ),
        (
            MINIMAL + 'default_model_filename: "/etc/passwd"',
            (),
            "found '/etc/passwd'; expected the name of a",
        ),
        (MINIMAL + 'default_model_filename: "a\\nb"', (), "found 'a\\nb'; expected printable characters"),
        (
            MINIMAL + 'output { name: "z" data_type: TYPE_FP32 dims: 1 label_filename: "../../x" }',
            (),
            "6:49: output[1].label_filename: found '../../x'; expected the name of a file below",
        ),
        (
            MINIMAL + 'output { name: "z" data_type: TYPE_FP32 dims: 1 label_filename: "x" }',
            (),
            "output[1].label_filename: found 'x', but m/x does not exist; expected a file there",
        ),
    ],
)
def test_faults(tmp_path: Path, config: str, files: tuple[str, ...], expected: str) -> None:
    write_model(tmp_path, config=config, files=files)
    message = fault(tmp_path)
    assert message.startswith("m/config.pbtxt: ")
    assert expected in message
    assert "\n" not in message


def test_labels(tmp_path: Path) -> None:
    config = MINIMAL.replace("output [ {", 'output [ { label_filename: "labels.txt"')
    directory = write_model(tmp_path, config=config)
    (directory / "labels.txt").write_bytes("\ufeffcat\r\n\r\nhündchen \n\n".encode())
    assert only(tmp_path).config.outputs[0].labels == ("cat", "", "hündchen")
    (directory / "labels.txt").write_bytes(b"cat\n\xff")
    assert fault(tmp_path) == "m/labels.txt: 2: byte 0xff; expected UTF-8 text"


def test_same_name_in_two_repositories(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    write_model(tmp_path / "b")
    write_model(tmp_path / "b", "other")
    entries, (problem,) = Repository(tmp_path / "a", tmp_path / "b").scan()
    assert [entry.name for entry in entries] == ["other"]
    assert problem.model == "m"
    assert "model 'm' is in" in problem.error.message
    entries, problems = Repository(tmp_path / "a", tmp_path / "a").scan()
    assert (len(entries), problems) == (1, [])


def test_repository_paths(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, what in [(tmp_path / "file", "not a directory"), (tmp_path / "none", "does not exist")]:
        with pytest.raises(SetupError, match=what):
            Repository(path)
    with pytest.raises(SetupError, match="expected one or more"):
        Repository()
    gone = tmp_path / "gone"
    gone.mkdir()
    repository = Repository(gone)
    gone.rmdir()
    with pytest.raises(SetupError, match="cannot be read"):
        repository.scan()


@pytest.mark.parametrize("name", ["a" * 101, "tab\tname", "new\nline", "ü" * 70])
def test_names_that_cannot_be_served(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, name)
    _, (problem,) = Repository(tmp_path).scan()
    assert problem.model.isprintable()
    assert "\n" not in problem.error.message
    assert "expected" in problem.error.message or "allowed" in problem.error.message


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9") / "1").mkdir(parents=True)
    _, (problem,) = Repository(tmp_path).scan()
    assert problem.model == "caf\\udce9"
    problem.error.message.encode()  # can be logged and sent


def test_unusual_names_are_served(tmp_path: Path) -> None:
    write_model(tmp_path, "größe 2.0 (x*y>)")
    assert only(tmp_path).name == "größe 2.0 (x*y>)"


class TestLinks:
    def test_inside_the_repository(self, tmp_path: Path) -> None:
        """As a mounted Kubernetes volume has them: every file a link to a hidden directory."""
        target = write_model(tmp_path, ".data", versions=("1",))
        model = tmp_path / "m"
        model.mkdir()
        (model / "config.pbtxt").symlink_to(target / "config.pbtxt")
        (model / "1").symlink_to(target / "1")
        assert only(tmp_path).versions == (1,)

    @pytest.mark.parametrize("name", ["config.pbtxt", "1", "1/net.py", "labels.txt"])
    def test_out_of_the_repository(self, tmp_path: Path, name: str) -> None:
        outside = write_model(tmp_path / "outside", files=("net.py",))
        (outside / "labels.txt").touch()
        config = MINIMAL.replace("output [ {", 'output [ { label_filename: "labels.txt"')
        directory = write_model(
            tmp_path / "models", config=config + 'default_model_filename: "net.py"', files=("net.py",)
        )
        (directory / "labels.txt").touch()
        only(tmp_path / "models")
        (directory / name).rename(tmp_path / "old")
        (directory / name).symlink_to(outside / name)
        message = fault(tmp_path / "models")
        assert f"m/{name}: leads out of the model repository; expected a place inside" in message

    def test_whole_model(self, tmp_path: Path) -> None:
        outside = write_model(tmp_path / "outside")
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "m").symlink_to(outside)
        assert "m: leads out of the model repository" in fault(tmp_path / "models")

    def test_in_a_circle(self, tmp_path: Path) -> None:
        directory = write_model(tmp_path, config=None, files=("model.py",))
        (directory / "config.pbtxt").symlink_to(directory / "config.pbtxt")
        assert "m/config.pbtxt: cannot be followed" in fault(tmp_path)

    def test_dangling(self, tmp_path: Path) -> None:
        directory = write_model(tmp_path, config=None, files=("model.py",))
        (directory / "config.pbtxt").symlink_to(directory / "nowhere")
        assert fault(tmp_path) == "m/config.pbtxt: no such file; expected a file"


def test_configuration_files(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    (directory / "config.yaml").write_text("backend: python")
    assert fault(tmp_path) == "m: config.pbtxt and config.yaml are both there; expected one of them"
    (directory / "config.pbtxt").unlink()
    assert only(tmp_path).config.backend == "python"
    (directory / "config.yaml").rename(directory / "config.yml")
    assert fault(tmp_path) == "m/config.yml: found this name; expected config.pbtxt or config.yaml"
    (directory / "config.yml").unlink()
    os.mkfifo(directory / "config.pbtxt")
    assert fault(tmp_path) == "m/config.pbtxt: not a file; expected a file"
    (directory / "config.pbtxt").unlink()
    (directory / "config.pbtxt").write_text(MINIMAL + "#" * MAX_CONFIG_BYTES)
    assert fault(tmp_path) == f"m/config.pbtxt: larger than {MAX_CONFIG_BYTES} bytes; expected at most that"
    (directory / "config.pbtxt").write_bytes(b'name: "m"\n# caf\xe9')
    assert fault(tmp_path) == "m/config.pbtxt: 2: byte 0xe9; expected UTF-8 text"

"""Compare experiment folders and models byte by byte."""

import hashlib
import json
from pathlib import Path

import torch
import yaml


def saved(folder: Path) -> dict[str, str]:
    """Return a hash of each file of ``save/``, times of creation aside.

    Checkpoints that a test pass has written carry the time in their name, in
    seconds and with a number that is used again: they are counted instead.
    """
    save = Path(folder) / "save"
    written = sorted(save.glob("CKPT+*"), key=_written)
    numbers = {path.name: f"CKPT {i}" for i, path in enumerate(written)}
    found = {}
    for path in save.rglob("*"):
        if path.is_file():
            parts = path.relative_to(save).parts
            key = "/".join(numbers.get(part, part) for part in parts)
            found[key] = _digest(path)
    return found


def _written(checkpoint: Path) -> float:
    """Return when a checkpoint was written, in seconds since the epoch."""
    meta = yaml.safe_load((checkpoint / "CKPT.yaml").read_text())
    return meta["unixtime"]


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "CKPT.yaml":
        meta = yaml.safe_load(data)
        meta.pop("unixtime")
        data = json.dumps(meta, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def results(folder: Path) -> dict[str, bytes]:
    """Return the files beside ``save`` and ``ptq``, logs aside."""
    folder = Path(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.relative_to(folder).parts[0] not in ("save", "ptq")
        and path.name not in ("train_log.txt", "log.txt", "env.log")
    }


def report(folder: Path) -> dict:
    """Return ``report.json``, refusing what strict JSON has not."""
    return strict_json((Path(folder) / "ptq" / "report.json").read_text())


def strict_json(text: str):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


class Snapshot:
    """Every parameter, buffer, class and instance attribute of a model."""

    def __init__(self, root: torch.nn.Module):
        self.root = root
        self.tensors = self._tensors()
        self.values = {k: t.detach().clone() for k, t in self.tensors.items()}
        self.attributes = self._attributes()

    def _tensors(self):
        named = [*self.root.named_parameters(), *self.root.named_buffers()]
        return dict(named)

    def _attributes(self):
        return {
            name: (
                type(module),
                sorted(vars(module)),
                {k: len(v) for k, v in vars(module).items() if "_hooks" in k},
            )
            for name, module in self.root.named_modules()
        }

    def check(self) -> None:
        """Fail unless all is as it was: same objects, same bits."""
        now = self._tensors()
        assert list(now) == list(self.tensors)
        for name, tensor in now.items():
            assert tensor is self.tensors[name], name
            assert torch.equal(tensor, self.values[name]), name
        assert self._attributes() == self.attributes

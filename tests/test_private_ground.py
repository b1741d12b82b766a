"""The use of torch beyond its public interface: a list that CONTRIBUTING.md explains, and nothing else."""

import ast
from collections import defaultdict
from pathlib import Path

import torch

from gradosr.scoring.compute import Compute

ROOT = Path(__file__).parent.parent
GROUND = {
    "__code__": {"gradients/capture.py", "gradients/triton_kernels.py"},
    "_version": {"gradients/folding.py", "gradients/graphs.py", "gradients/passes.py"},
    "allow_tf32": {"gradients/fused.py", "gradients/graphs.py", "scoring/compute.py"},
    "torch.ops.aten.convolution_backward": {"gradients/convolution.py"},
    "torch.ops.aten.native_batch_norm_backward": {"gradients/rules.py"},
    "torch.ops.image.decode_jpeg": {"archive/decode.py"},
}


def private(node: ast.Attribute) -> str:
    """Return the name under which an attribute stands in GROUND; empty if it is public, or none of torch's."""
    dotted = ast.unparse(node)
    if dotted.startswith("torch."):
        parts = dotted.split(".")
        if parts[1] == "ops" and len(parts) == 4:
            return dotted
        if any(part.startswith("_") and not part.startswith("__") for part in parts):
            return dotted
    own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    return node.attr if node.attr in ("__code__", "_version", "allow_tf32") and not own else ""


def test_no_other_private_ground_of_torch_is_used() -> None:
    found = defaultdict(set)
    for path in sorted((ROOT / "gradosr").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and (name := private(node)):
                found[name].add(str(path.relative_to(ROOT / "gradosr")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("torch", "torchvision")):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not [part for part in names if part.startswith("_")], path
    assert found == GROUND
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name for name in GROUND if f"`{name}`" not in told] == []


def test_the_switch_of_tf32_rules_over_the_newer_one() -> None:
    """Mixing both raises in torch 2.9 and later, unless the older one was set last."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    newer = hasattr(matmul, "fp32_precision")
    try:
        for precision, theirs in (("float32", "tf32"), ("tf32", "ieee")):
            if newer:  # as a user's own code may do while its module is imported
                matmul.fp32_precision = cudnn.conv.fp32_precision = theirs  # type: ignore[attr-defined]
            Compute(torch.device("cuda"), precision).prepare()  # type: ignore[arg-type]
            wanted = precision == "tf32"
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (wanted, wanted)
            if newer:
                assert (matmul.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32") == (wanted, wanted)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before

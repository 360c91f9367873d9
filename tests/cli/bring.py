"""Writes models with the Python package onnx, as another program would, and brings them into a bundle.

Usage: bring.py LODESTONE BUNDLE DATA. Needs ORT_DYLIB_PATH, and the packages onnx and numpy. Exits with 1 if a check is wrong.
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LODESTONE, BUNDLE, DATA = sys.argv[1:4]
wrong = []


def check(right, claim):
    print(f"  {'ok   ' if right else 'WRONG'} {claim}")
    if not right:
        wrong.append(claim)


def run(*arguments):
    return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def save(path, nodes, inputs, output, constants):
    value = lambda name, kind, shape: helper.make_tensor_value_info(name, kind, shape)
    graph = helper.make_graph(nodes, path.stem, [value(*described) for described in inputs], [value(*output)],
                              [numpy_helper.from_array(array, name) for name, array in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def ranker(path, features, heads, bad=False):
    weights = np.linspace(-0.2, 0.2, features * heads, dtype=np.float32).reshape(features, heads)
    if bad:
        weights[0, 0] = np.nan
    return save(path, [helper.make_node("MatMul", ["features", "weights"], ["logits"])],
                [("features", TensorProto.FLOAT, ["rows", features])], ("logits", TensorProto.FLOAT, ["rows", heads]),
                {"weights": weights})


def user_encoder(path, reads_padding=False, unit=True):
    """The mean of the history's items."""
    node = helper.make_node
    last = "user" if unit else "summed"
    if reads_padding:
        # Masked positions are 0, and most others are below.
        read = [node("Mul", ["mask3", "quarter"], ["shift"]), node("Sub", ["items", "shift"], ["kept"]), node("ReduceMax", ["kept", "length_axis"], ["summed"], keepdims=0)]
    else:
        read = [node("Mul", ["items", "mask3"], ["kept"]), node("ReduceSum", ["kept", "length_axis"], ["summed"], keepdims=0)]
    nodes = [node("Unsqueeze", ["mask", "last"], ["mask3"]), *read]
    if unit:
        nodes.append(node("LpNormalization", ["summed"], ["user"], axis=-1, p=2))
    history = ["batch", "length"]
    return save(path, nodes,
                [("items", TensorProto.FLOAT, [*history, 64]), ("kinds", TensorProto.INT64, history),
                 ("positions", TensorProto.INT64, history), ("ages", TensorProto.FLOAT, history),
                 ("mask", TensorProto.FLOAT, history)],
                (last, TensorProto.FLOAT, ["batch", 64]),
                {"last": np.array([-1]), "length_axis": np.array([1]), "quarter": np.array(0.25, dtype=np.float32)})


def own_weights(path):
    return numpy_helper.to_array(onnx.load(path).graph.initializer[0]).tobytes()


def build(work, out, *models):
    return run("bundle", "build", "--from", BUNDLE, "--out", work / out, *models)


def refused(words, ran, claim):
    check(ran.returncode == 2 and all(word in ran.stderr for word in words), f"{claim}: names {words} {ran.stderr[-200:]}")


with tempfile.TemporaryDirectory() as directory:
    work = pathlib.Path(directory)
    own = onnx.load(pathlib.Path(BUNDLE) / "ranker.onnx")
    features = own.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    heads = own.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    vectors = work / "items.npy"
    run("benchmark", "ann", "--bundle", BUNDLE, "--save", vectors)

    ran = build(work, "brought", "--ranker", ranker(work / "ranker.onnx", features, heads), "--user-encoder",
                user_encoder(work / "user.onnx"), "--item-vectors", vectors)
    check(ran.returncode == 0, f"a bundle with another ranker and user encoder is built {ran.stderr[-300:]}")
    ran = run("evaluate", "--data", DATA, "--bundle", work / "brought")
    check(ran.returncode == 0 and "ranked" in ran.stdout, f"and evaluated {ran.stderr[-300:]}")
    ran = run("bundle", "show", "--bundle", work / "brought")
    check(ran.returncode == 0 and "user_encoder.onnx" in ran.stdout, "and shown")
    ran = run("gate", "--data", DATA, "--candidate", work / "brought", "--current", BUNDLE, "--slower-max", 100)
    check(ran.returncode == 1 and "it is worse" in ran.stdout, f"arbitrary weights do not pass the gate {ran.stdout}")

    # Weights in a file of their own, as PyTorch writes them.
    apart = work / "apart"
    apart.mkdir()
    onnx.save_model(onnx.load(work / "ranker.onnx"), apart / "ranker.onnx", save_as_external_data=True, location="ranker.onnx.data",
                    size_threshold=0)
    ran = build(work, "whole", "--ranker", apart / "ranker.onnx")
    inside = onnx.load(work / "whole" / "ranker.onnx", load_external_data=False) if ran.returncode == 0 else None
    check(inside is not None and inside.graph.initializer[0].raw_data == own_weights(work / "ranker.onnx"),
          f"weights in another file become part of the bundle's model {ran.stderr[-300:]}")
    (apart / "ranker.onnx.data").unlink()
    refused(["apart/ranker.onnx", "`weights`", "ranker.onnx.data", "one file"], build(work, "j", "--ranker", apart / "ranker.onnx"),
            "a missing file of weights")

    few = ranker(work / "few.onnx", features - 1, heads)
    refused(["few.onnx", "features", str(features)], build(work, "a", "--ranker", few), "too few features")
    more = ranker(work / "more.onnx", features, heads + 1)
    refused(["more.onnx", f"{heads + 1} heads"], build(work, "b", "--ranker", more), "more heads than the bundle has")
    nan = ranker(work / "nan.onnx", features, heads, bad=True)
    refused(["nan.onnx", "finite"], build(work, "c", "--ranker", nan), "a weight that is not a number")
    padded = user_encoder(work / "padded.onnx", reads_padding=True)
    refused(["padded.onnx", "mask"], build(work, "d", "--user-encoder", padded, "--item-vectors", vectors), "an encoder that reads padding")
    long = user_encoder(work / "long.onnx", unit=False)
    refused(["long.onnx", "summed", "user"], build(work, "i", "--user-encoder", long, "--item-vectors", vectors), "another output")
    np.save(work / "short.npy", np.load(vectors)[:-1])
    refused(["item vectors", "items × 64"], build(work, "e", "--user-encoder", work / "user.onnx", "--item-vectors",
            work / "short.npy"), "a vector too few")
    values = np.load(vectors)
    values[5] = 0
    np.save(work / "zero.npy", values)
    refused(["item vector of item", "length"], build(work, "f", "--user-encoder", work / "user.onnx", "--item-vectors",
            work / "zero.npy"), "a vector of zeros")
    (work / "broken.onnx").write_bytes(b"no model")
    refused(["broken.onnx"], build(work, "g", "--ranker", work / "broken.onnx"), "a file that is not ONNX")
    refused(["user.onnx", "features"], build(work, "h", "--ranker", work / "user.onnx"), "another model's file")
    check(not any((work / name).exists() for name in "abcdefghij"), "none of these was written")
print(f"bring: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)

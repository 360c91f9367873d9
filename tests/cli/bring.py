"""Writes models with the Python package onnx, as another program would, and brings them into a bundle.

Sentence encoders are tiny models in the layouts of the usual families. The vector of one query, computed here with
numpy, is the known answer that the bundle must return.

Usage: bring.py LODESTONE BUNDLE DATA. Needs ORT_DYLIB_PATH, and the packages onnx and numpy. Exits with 1 if a check is wrong.
"""
import hashlib
import json
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
    return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=900)


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


def user_encoder(path, reads_padding=False, unit=True, width=64):
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
                [("items", TensorProto.FLOAT, [*history, width]), ("kinds", TensorProto.INT64, history),
                 ("positions", TensorProto.INT64, history), ("ages", TensorProto.FLOAT, history),
                 ("mask", TensorProto.FLOAT, history)],
                (last, TensorProto.FLOAT, ["batch", width]),
                {"last": np.array([-1]), "length_axis": np.array([1]), "quarter": np.array(0.25, dtype=np.float32)})


def own_weights(path):
    return numpy_helper.to_array(onnx.load(path).graph.initializer[0]).tobytes()
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "passage", "represent", "this", ":", "red", "mug", "blue", "lamp"]
WIDTH = 8
TABLE = np.random.default_rng(7).normal(size=(len(WORDS), WIDTH)).astype(np.float32)
PROMPTS = "config_sentence_transformers.json"


def tokenizer(directory):
    """Words and punctuation, between [CLS] and [SEP]."""
    special = [{"id": WORDS.index(word), "content": word, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for word in WORDS[:4]]
    piece = lambda word: {"SpecialToken": {"id": word, "type_id": 0}}
    template = [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]")]
    (directory / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template,
                           "special_tokens": {word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")}},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: number for number, word in enumerate(WORDS)}, "unk_token": "[UNK]"}}))


def sentence_model(path, outputs=("last_hidden_state",), inputs=("input_ids", "attention_mask"), positions=None):
    """Token vectors are rows of TABLE. `sentence_embedding` is the vector of the first token times 2. With `positions`
    the model reads at most that many tokens."""
    value, node, shape = helper.make_tensor_value_info, helper.make_node, ["batch", "length"]
    nodes = [node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    if positions:
        nodes = [node("Gather", ["table", "input_ids"], ["words"]), node("Gather", ["positions", "position_ids"], ["places"]),
                 node("Add", ["words", "places"], ["last_hidden_state"])]
    described = {"last_hidden_state": [*shape, WIDTH], "sentence_embedding": ["batch", WIDTH], "other": [*shape, WIDTH]}
    if "sentence_embedding" in outputs:
        nodes += [node("Gather", ["last_hidden_state", "zero"], ["first"], axis=1), node("Add", ["first", "first"], ["sentence_embedding"])]
    if "other" in outputs:
        nodes.append(node("Neg", ["last_hidden_state"], ["other"]))
    constants = {"table": TABLE, "zero": np.array(0), "positions": np.zeros((positions or 1, WIDTH), np.float32)}
    graph = helper.make_graph(nodes, "sentence", [value(name, TensorProto.INT64, shape) for name in inputs],
                              [value(name, TensorProto.FLOAT, described[name]) for name in outputs],
                              [numpy_helper.from_array(array, name) for name, array in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def encoder(directory, files=None, **model):
    """A model directory with the given JSON files."""
    for name, content in {"sentence_bert_config.json": {"max_seq_length": 32}, **(files or {})}.items():
        if content is not None:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(json.dumps(content))
    directory.mkdir(exist_ok=True)
    tokenizer(directory)
    sentence_model(directory / "model.onnx", **model)
    return directory


def pooling(mode):
    modes = ["cls_token", "mean_tokens", "max_tokens", "lasttoken"]
    return {"1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "include_prompt": True,
                                      **{f"pooling_mode_{name}": name == mode for name in modes}}}


def know(directory, text, pool, dimensions=WIDTH):
    """Writes the vector that the encoder must return for the query `red mug`; `text` is the query after its prefix."""
    words = ["[CLS]", *text.replace(":", " : ").split(), "[SEP]"]
    tokens = TABLE[[WORDS.index(word) for word in words]]
    vector = {"mean": tokens.mean(0), "cls": tokens[0], "last": tokens[-1], "other": -tokens.mean(0)}[pool][:dimensions]
    known = {"query": "red mug", "vector": (vector / np.linalg.norm(vector)).tolist()}
    (directory / "known_answer.json").write_text(json.dumps(known))
    return directory


def sentence_encoders(work):
    """Families of sentence encoders are configuration; what is not declared, or wrong, is refused."""
    instruction = "represent this : "
    declared = lambda **prompts: {PROMPTS: {"prompts": prompts, "similarity_fn_name": "cosine"}}
    no_prefix = ["--query-prefix", "", "--passage-prefix", ""]
    modules = lambda *kinds: {"modules.json": [{"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
                                               for n, kind in enumerate(kinds)]}
    e5 = {**pooling("mean_tokens"), **modules("Transformer", "Pooling", "Normalize")}
    families = [
        ("minilm", know(encoder(work / "minilm", {**pooling("mean_tokens"), PROMPTS: {"__version__": {}}}), "red mug", "mean"), no_prefix),
        ("e5", know(encoder(work / "e5", e5), "query : red mug", "mean"), ["--query-prefix", "query: ", "--passage-prefix", "passage: "]),
        ("bge", know(encoder(work / "bge", pooling("cls_token"), outputs=("last_hidden_state", "other")), f"{instruction}red mug", "cls"),
         ["--query-prefix", instruction, "--passage-prefix", ""]),
        ("gte", know(encoder(work / "gte", {**pooling("mean_tokens"), "sentence_bert_config.json": None, "tokenizer_config.json": {"model_max_length": 512}}),
                     "red mug", "mean"), no_prefix),
        ("arctic", know(encoder(work / "arctic", {**pooling("cls_token"), **declared(query=instruction), "config.json": {"matryoshka_dimensions": [4]}}),
                        f"{instruction}red mug", "cls", 4), ["--encoder-dimensions", "4"]),
        ("qwen3", know(encoder(work / "qwen3", {**pooling("lasttoken"), **declared(query="query: ", document="")},
                               inputs=("input_ids", "attention_mask", "position_ids")), "query : red mug", "last"), []),
        ("optimum", know(encoder(work / "optimum", declared(), outputs=("last_hidden_state", "sentence_embedding")), "red mug", "cls"), []),
        ("named", know(encoder(work / "named", {**pooling("mean_tokens"), **declared()}, outputs=("last_hidden_state", "other")), "red mug", "other"),
         ["--encoder-output", "other"]),
    ]
    for name, directory, flags in families:
        ran = build(work, f"with-{name}", "--query-encoder", directory, *flags)
        check(ran.returncode == 0, f"{name}: the bundle returns the vector of the reference {ran.stderr[-300:]}")
    shown = run("bundle", "show", "--bundle", work / "with-arctic").stdout
    check("Cls pooling" in shown and "4 dimensions" in shown and instruction in shown, f"a bundle shows how it reads texts {shown[:900]}")

    plain = {**pooling("mean_tokens"), **declared()}
    wrong_answers = [
        ("no pooling", {"1_Pooling/config.json": None}, {}, [], ["1_Pooling/config.json", "--encoder-pooling"]),
        ("no prompts", {PROMPTS: {"__version__": {}}}, {}, [], ["config_sentence_transformers.json", "--query-prefix"]),
        ("prompts of other names", declared(web_search="find: "), {}, [], ["web_search", "--query-prefix"]),
        ("no maximum length", {"sentence_bert_config.json": None}, {}, [], ["--encoder-tokens-max"]),
        ("a maximum length out of range", {}, {}, ["--encoder-tokens-max", "3"], ["is 3", "16"]),
        ("an unsupported pooling", pooling("max_tokens"), {}, [], ["max_tokens", "not supported"]),
        ("two outputs without a usual name", {}, {"outputs": ("other", "sentence_embedding")}, ["--encoder-output", "pooler"], ["pooler", "other, sentence_embedding"]),
        ("a module after the pooling", modules("Transformer", "Pooling", "Dense"), {}, [], ["Dense"]),
        ("vectors compared by inner product", {PROMPTS: {"prompts": {}, "similarity_fn_name": "dot"}}, {}, [], ["dot", "cosine"]),
        ("more dimensions than the model has", {}, {}, ["--encoder-dimensions", "9"], ["9 dimensions", "has 8"]),
        ("dimensions without training", {"config.json": {"matryoshka_dimensions": [2, 4]}}, {}, ["--encoder-dimensions", "3"], ["3 dimensions", "[2, 4]"]),
        ("more tokens than the model has positions", {}, {"inputs": ("input_ids", "position_ids"), "positions": 24}, [], ["32 tokens", "--encoder-tokens-max"]),
        ("an input of another kind", {}, {"inputs": ("input_ids", "past_key_values.0.key")}, [], ["past_key_values", "cache"]),
        ("a pooling of a pooled output", {}, {"outputs": ("sentence_embedding",)}, ["--encoder-pooling", "mean"], ["sentence_embedding", "--encoder-pooling"]),
    ]
    for number, (claim, files, model, flags, words) in enumerate(wrong_answers):
        directory = encoder(work / f"wrong-{number}", {**plain, **modules("Transformer", "Pooling"), **files}, **model)
        refused(words, build(work, f"z{number}", "--query-encoder", directory, *flags), claim)
    directory = know(encoder(work / "other-pooling", {**plain, **pooling("cls_token")}), "red mug", "mean")
    refused(["known_answer.json", "cosine"], build(work, "z-known", "--query-encoder", directory), "another pooling than the reference's")

    tampered = work / "with-e5"
    file, manifest = tampered / "known_answer.json", tampered / "manifest.json"
    known = json.loads(file.read_text())
    known["vector"] = [-value for value in known["vector"]]
    file.write_text(json.dumps(known))
    content = json.loads(manifest.read_text())
    content["files"]["known_answer.json"] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(content))
    refused(["known answer", "cosine of -1.0"], run("evaluate", "--data", DATA, "--bundle", tampered), "a machine that computes other vectors")


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
    check("below a baseline that needs no training: NDCG@10 is" in ran.stdout, f"and are below a baseline {ran.stdout}")

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
    np.save(work / "narrow.npy", np.load(vectors)[:, :24])
    narrow = user_encoder(work / "narrow.onnx", width=24)
    ran = build(work, "narrow", "--user-encoder", narrow, "--item-vectors", work / "narrow.npy")
    check(ran.returncode == 0 and "24 dimensions" in run("bundle", "show", "--bundle", work / "narrow").stdout,
          f"the width follows from the item vectors {ran.stderr[-300:]}")
    ran = run("evaluate", "--data", DATA, "--bundle", work / "narrow")
    check(ran.returncode == 0 and "ranked" in ran.stdout, f"and the bundle is evaluated {ran.stderr[-300:]}")
    refused(["narrow.onnx", "[-1, -1, 24]", "[-1, -1, 64]"], build(work, "k", "--user-encoder", narrow, "--item-vectors", vectors),
            "item vectors of another width than the encoder's")
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
    check(not any((work / name).exists() for name in "abcdefghijk"), "none of these was written")
    sentence_encoders(work)
print(f"bring: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)

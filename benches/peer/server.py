"""The peer of `make bench`: two-stage ranking in Python with grpcio, faiss, tantivy, ONNX Runtime and numpy.

Reads a Lodestone bundle and the imported history, and answers Search and Recommend (FOR_YOU) of lodestone.v1 with the
same ONNX files, sources, limits and features, and a similar fusion. Precomputes the same data as Lodestone, and loops
over candidates in numpy only. Has no writes, filters, policy, reasons, paging and validation.

    server.py --bundle DIR --data DIR --port N --processes N --stubs DIR
"""
import argparse
import json
import multiprocessing
import re
import sys
import time
import unicodedata
import uuid
from concurrent import futures
from pathlib import Path

import faiss
import grpc
import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
import tantivy

DIM = 64
SOURCE_COUNT, CANDIDATE_COUNT, K = 150, 250, 60.0
WEIGHTS = {"user_vector": 1.0, "query_vector": 1.0, "lexical": 3.0, "transitions": 1.0, "co_purchases": 0.7,
           "popular": 0.5, "history": 1.2}
RECENT_MAX, RECENT_DECAY, EVENTS_MAX, ENCODED_EVENTS_MAX = 12, 0.85, 200, 50
DAY_MS, SLOW, FAST = 86_400_000, 60.0, 7.0
PURCHASE, REFUND = 10, 11
KINDS = {name: number for number, name in enumerate(
    ["search", "impression", "view", "click", "add_to_cart", "remove_from_cart", "favorite", "unfavorite", "review",
     "purchase", "refund", "category_view", "incentive_shown", "incentive_redeemed"], start=1)}


def neighbours(path):
    """Reads a table of neighbours: offsets of rows, neighbours, weights."""
    raw = path.read_bytes()
    rows, pairs = np.frombuffer(raw, "<u8", 2, 8)
    numbers = np.frombuffer(raw, "<u4", int(rows + 1 + pairs), 24)
    weights = np.frombuffer(raw, "<f4", int(pairs), 24 + 4 * int(rows + 1 + pairs))
    return numbers[: rows + 1].astype(np.int64), numbers[rows + 1 :].astype(np.int64), weights


def index_vectors(path):
    """Reads the vectors of an index (docs/bundle.md), ordered by item row."""
    raw = path.read_bytes()
    dimensions, _, m, points, rows, first_rows, layers, _ = np.frombuffer(raw, "<u8", 8, 8).tolist()
    at = 8 + 8 * 8 + 8 * layers

    def array(kind, count):
        nonlocal at
        at = -(-at // 64) * 64
        values = np.frombuffer(raw, kind, count, at)
        at += values.nbytes
        return values

    array("u1", points * (-(-dimensions // 64) * 64))
    vectors = array("<f4", points * dimensions).reshape(points, dimensions)
    array("<u4", points * 2 * m)
    row_list, first_row = array("<u4", rows), array("<u4", first_rows)
    counts = np.diff(first_row.astype(np.int64)) if first_rows else np.ones(points, np.int64)
    ordered = np.empty((rows, dimensions), np.float32)
    ordered[row_list] = np.repeat(vectors, counts, axis=0)
    return ordered


def stable_hash(kind, term):
    mask = (1 << 64) - 1
    value = 0xCBF29CE484222325
    for byte in (kind + term).encode():
        value = ((value ^ byte) * 0x100000001B3) & mask
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & mask
    return value ^ (value >> 33)


def stem(word):
    if len(word) <= 3 or not re.fullmatch("[a-z]+", word):
        return word
    if len(word) > 4 and word.endswith(("ies", "ie")):
        return (word[:-3] if word.endswith("ies") else word[:-2]) + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes")):
        return word[:-2]
    if word.endswith(("ss", "us", "is")):
        return word
    return word[:-1] if word.endswith("s") else word


def hashed_terms(text, buckets):
    """Returns hashed words and character n-grams as `text::hashed_terms` does, for Latin texts."""
    words = re.findall(r"\w+(?:\.\w+)*", unicodedata.normalize("NFKC", text).lower())
    terms = [("w", stem(word)) for word in words]
    for length in (3, 4, 5):
        for word in words:
            bounded = f"^{word}$"
            terms += [("g", bounded[at : at + length]) for at in range(len(bounded) - length + 1)]
    ids = dict.fromkeys(stable_hash(kind, term) % buckets for kind, term in terms)
    return np.fromiter(ids, np.int64)


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Shop:
    """A bundle with the state of its shop."""

    def __init__(self, bundle, data):
        manifest = json.loads((bundle / "manifest.json").read_text())
        self.buckets = manifest["term_bucket_count"]
        heads = manifest["heads"]
        self.scale, self.offset, self.weight = (np.array([h[k] for h in heads], np.float32)
                                                for k in ("scale", "offset", "weight"))
        items = pq.read_table(bundle / "items.parquet").to_pydict()
        self.ids = items["item_id"]
        self.row_of = {item: row for row, item in enumerate(self.ids)}
        self.log_price = np.log1p(np.array([(p or 0) / 1e6 for p in items["price_micros"]], np.float32))
        self.created = np.array([c or 0 for c in items["created_ms"]], np.int64)
        self.user_space = index_vectors(bundle / "item_vectors.index")
        self.query_space = index_vectors(bundle / "title_vectors.index")
        self.transitions, self.co_purchases = (
            neighbours(bundle / f"{table}.neighbours") for table in ("transitions", "co_purchases"))
        self.user_index, self.query_index = self.hnsw(self.user_space), self.hnsw(self.query_space)
        self.encoder, self.query_encoder, self.ranker = (
            session(bundle / f"{m}.onnx") for m in ("user_encoder", "query_encoder", "ranker"))
        self.read_events(data)
        self.lexical = self.index_titles(items)

    @staticmethod
    def hnsw(vectors):
        index = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 100, 160
        index.add(vectors)
        return index

    @staticmethod
    def index_titles(items):
        schema = tantivy.SchemaBuilder()
        schema.add_unsigned_field("row", stored=False, fast=True)
        schema.add_text_field("title", tokenizer_name="en_stem")
        index = tantivy.Index(schema.build())
        writer = index.writer(num_threads=1)
        for row, title in enumerate(items["title"]):
            document = tantivy.Document()
            document.add_unsigned("row", row)
            document.add_text("title", title)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        return index

    def read_events(self, data):
        """Folds the imported history, moved so that it ends now, into popularity and users' histories."""
        table = pq.read_table(data / "events.parquet").to_pydict()
        shift = int(time.time() * 1000) - max(table["time_ms"])
        count = len(self.ids)
        self.slow, self.fast, self.at = np.zeros(count), np.zeros(count), np.zeros(count)
        weights = {10: 4.0, 5: 2.0, 7: 2.0, 3: 1.0, 4: 1.0, 9: 1.0}
        users = {}
        for user, kind, at, item in zip(table["user"], table["type"], table["time_ms"], table["item_id"]):
            row, number = self.row_of.get(item), KINDS[kind]
            if row is None:
                continue
            at += shift
            if user is not None:
                users.setdefault(user, []).append((row, number, at))
            if weight := weights.get(number):
                days = max(0.0, (at - self.at[row]) / DAY_MS)
                self.slow[row] = self.slow[row] * 2 ** (-days / SLOW) + weight
                self.fast[row] = self.fast[row] * 2 ** (-days / FAST) + weight
                self.at[row] = at
        self.users = {user: np.array(events[-EVENTS_MAX:], np.int64) for user, events in users.items()}
        self.popular = np.argsort(-self.slow, kind="stable")[: SOURCE_COUNT // 2]

    def user(self, key, now):
        """Returns the parts of a user's history that features and sources read."""
        events = self.users.get(key)
        if events is None:
            events = np.zeros((0, 3), np.int64)
        rows, kinds, times = events[:, 0], events[:, 1], events[:, 2]
        newest = rows[::-1][kinds[::-1] != REFUND]
        _, first = np.unique(newest, return_index=True)
        recent = newest[np.sort(first)[:RECENT_MAX]]
        touched, inverse = np.unique(rows, return_inverse=True)
        bought, refunded = kinds == PURCHASE, kinds == REFUND
        count = len(touched)
        bought_count = np.bincount(inverse[bought], minlength=count)
        bought_at = np.zeros(count, np.int64)
        np.maximum.at(bought_at, inverse[bought], times[bought])
        prices = self.log_price[rows[bought]]
        return {
            "rows": rows, "kinds": kinds, "times": times, "recent": recent, "touched": touched,
            "weights": RECENT_DECAY ** np.arange(len(recent), dtype=np.float32),
            "bought_count": bought_count, "bought_at": bought_at,
            "refunded_count": np.bincount(inverse[refunded], minlength=count),
            "baskets": max(1, len(np.unique(times[bought]))),
            "mean_price": prices.mean() if len(prices) else 0.0,
            "vector": self.encode_user(rows, kinds, times, now) if len(rows) else None,
        }

    def encode_user(self, rows, kinds, times, now):
        rows, kinds, times = rows[-ENCODED_EVENTS_MAX:], kinds[-ENCODED_EVENTS_MAX:], times[-ENCODED_EVENTS_MAX:]
        count = len(rows)
        return self.encoder.run(None, {
            "items": self.user_space[rows][None], "kinds": kinds[None],
            "positions": np.minimum(np.arange(count - 1, -1, -1), 63)[None],
            "ages": np.log1p(np.maximum(0, now - times) / DAY_MS).astype(np.float32)[None],
            "mask": np.ones((1, count), np.float32)})[0][0]

    def spread(self, table, user):
        """Returns a score for each item: the weighted sum of its neighbourhood with the user's recent items."""
        offsets, rows, weights = table
        scores = np.zeros(len(self.ids), np.float32)
        for anchor, weight in zip(user["recent"], user["weights"]):
            span = slice(offsets[anchor], offsets[anchor + 1])
            scores[rows[span]] += weights[span] * weight
        return scores

    @staticmethod
    def top(scores, count):
        best = np.argpartition(-scores, count)[:count] if len(scores) > count else np.arange(len(scores))
        best = best[scores[best] > 0]
        return best[np.argsort(-scores[best], kind="stable")]

    def candidates(self, key, query, now):
        """Returns the rows of the candidates, their features, and whether each matches all words of the query."""
        user = self.user(key, now)
        transitions, co_purchases = self.spread(self.transitions, user), self.spread(self.co_purchases, user)
        lexical, query_vector, complete = np.zeros(len(self.ids), np.float32), None, np.zeros(0, np.int64)
        if query is None:
            lists = {"transitions": self.top(transitions, SOURCE_COUNT),
                     "co_purchases": self.top(co_purchases, SOURCE_COUNT // 2)}
            if user["vector"] is not None:
                lists["user_vector"] = self.user_index.search(user["vector"][None], SOURCE_COUNT)[1][0]
            history = user["bought_count"] / (1.0 + np.log1p(np.maximum(0, now - user["bought_at"]) / DAY_MS))
            lists["history"] = user["touched"][self.top(history, SOURCE_COUNT)]
            lists["popular"] = self.popular
        else:
            terms = hashed_terms(query, self.buckets)
            query_vector = self.query_encoder.run(
                None, {"term_ids": terms[None], "mask": np.ones((1, len(terms)), np.float32)})[0][0]
            searcher = self.lexical.searcher()
            plain = re.sub(r"[^\w ]", " ", query)
            all_words = self.lexical.parse_query(plain, ["title"], conjunction_by_default=True)
            hits = searcher.search(all_words, SOURCE_COUNT)
            found = {address.doc: score for score, address in hits.hits}
            complete_count = len(found)
            if complete_count < SOURCE_COUNT:
                some = searcher.search(self.lexical.parse_query(plain, ["title"]), SOURCE_COUNT)
                for score, address in some.hits:
                    if len(found) < SOURCE_COUNT:
                        found.setdefault(address.doc, score)
            lexical[list(found)] = list(found.values())
            found = np.fromiter(found, np.int64)
            complete = found[:complete_count]
            lists = {"lexical": found,
                     "query_vector": self.query_index.search(query_vector[None], SOURCE_COUNT)[1][0]}
        fused = np.zeros(len(self.ids), np.float32)
        for source, rows in lists.items():
            fused[rows] += WEIGHTS[source] / (K + 1 + np.arange(len(rows), dtype=np.float32))
        rows = self.top(fused, CANDIDATE_COUNT)
        features = self.features(rows, user, query_vector, lexical, transitions, co_purchases, fused, now)
        return rows, features, np.isin(rows, complete)

    def features(self, rows, user, query_vector, lexical, transitions, co_purchases, fused, now):
        """Returns the ranking features, [rows × 27]."""
        out = np.zeros((len(rows), 27), np.float32)
        items, titles, recent = self.user_space[rows], self.query_space[rows], user["recent"]
        if user["vector"] is not None:
            out[:, 0], out[:, 1] = items @ user["vector"], 1.0
        if query_vector is not None:
            out[:, 2], out[:, 25] = titles @ query_vector, 1.0
        out[:, 3] = lexical[rows]
        out[:, 4] = lexical[rows] / max(lexical[rows].max(initial=0.0), 1e-9)
        out[:, 5], out[:, 7] = np.log1p(transitions[rows]), np.log1p(co_purchases[rows])
        if len(recent):
            offsets, neighbour_rows, weights = self.transitions
            span = slice(offsets[recent[0]], offsets[recent[0] + 1])
            last = np.zeros(len(self.ids), np.float32)
            last[neighbour_rows[span]] = weights[span]
            out[:, 6] = np.log1p(last[rows])
            same = rows[:, None] == recent[None]
            similar = np.where(same, 0.0, items @ self.user_space[recent].T)
            out[:, 8], out[:, 9] = similar[:, 0], similar.max(1)
            out[:, 10] = np.where(same, 0.0, titles @ self.query_space[recent].T).max(1)
        days = np.maximum(0.0, now - self.at[rows]) / DAY_MS
        slow, fast = self.slow[rows] * 2 ** (-days / SLOW), self.fast[rows] * 2 ** (-days / FAST)
        out[:, 11] = np.log1p(slow)
        out[:, 12] = np.log1p((fast * np.log(2) / FAST + 1) / (slow * np.log(2) / SLOW + 1))
        out[:, 14], out[:, 17] = -1.0, -1.0
        if len(user["touched"]):
            at = np.minimum(np.searchsorted(user["touched"], rows), len(user["touched"]) - 1)
            known = user["touched"][at] == rows
            bought = np.where(known, user["bought_count"][at], 0)
            out[:, 13], out[:, 15] = np.log1p(bought), bought / user["baskets"]
            since = np.log1p(np.maximum(0, now - user["bought_at"][at]) / DAY_MS)
            out[:, 14] = np.where(bought > 0, since, -1.0)
            out[:, 20] = np.log1p(np.where(known, user["refunded_count"][at], 0))
        out[:, 21] = self.log_price[rows]
        if user["mean_price"] > 0:
            out[:, 22] = np.where(out[:, 21] > 0, out[:, 21] - user["mean_price"], 0.0)
        out[:, 23] = np.where(self.created[rows] > 0, np.log1p(np.maximum(0, now - self.created[rows]) / DAY_MS), 0.0)
        out[:, 24], out[:, 26] = fused[rows], np.log1p(len(user["rows"]))
        return out

    def answer(self, key, query, size):
        """Returns the ids and scores of the best items. A query of None requests recommendations."""
        rows, features, complete = self.candidates(key, query, int(time.time() * 1000))
        if not len(rows):
            return []
        logits = self.ranker.run(None, {"features": features})[0]
        scores = (self.weight / (1.0 + np.exp(-(self.scale * logits + self.offset)))).sum(1)
        scores = scores + complete
        best = np.argsort(-scores, kind="stable")[:size]
        return [(self.ids[rows[at]], float(scores[at])) for at in best]


def serve(arguments, number):
    """Serves in this process until it is terminated. All processes share the port."""
    sys.path.insert(0, arguments.stubs)
    from lodestone.v1 import answer_pb2, ranking_service_pb2 as messages, ranking_service_pb2_grpc as services

    shop = Shop(arguments.bundle, arguments.data)

    class Ranking(services.RankingServiceServicer):
        def results(self, request, query):
            viewer = request.viewer
            key = f"u:{viewer.user_id}" if viewer.user_id else f"v:{viewer.visitor_id}"
            found = shop.answer(key, query, request.page_size or 24)
            return [answer_pb2.Result(item_id=item, rank=rank, score=score)
                    for rank, (item, score) in enumerate(found, start=1)]

        def Recommend(self, request, context):
            return messages.RecommendResponse(results=self.results(request, None), attribution_token=str(uuid.uuid4()))

        def Search(self, request, context):
            return messages.SearchResponse(results=self.results(request, request.query),
                                           attribution_token=str(uuid.uuid4()))

    options = [("grpc.so_reuseport", 1)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), options=options)
    services.add_RankingServiceServicer_to_server(Ranking(), server)
    server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    server.start()
    print(f"serving {number}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--stubs", required=True)
    arguments = parser.parse_args()
    workers = [multiprocessing.get_context("spawn").Process(target=serve, args=(arguments, n), daemon=True)
               for n in range(arguments.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

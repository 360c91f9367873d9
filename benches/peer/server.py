"""The peer of `make bench`: two-stage ranking in Python with grpcio, faiss, usearch, scipy, tantivy, ONNX Runtime and
numpy.

Reads a Lodestone bundle, its vectors (`lodestone bundle export-vectors`) and the imported history, and answers Search
and Recommend (FOR_YOU) of lodestone.v1 with the same ONNX files and limits, the same features, and similar sources and
fusion: popularity counts events and not users, refunds withdraw nothing, and texts are normalised by letter case and
compatibility only.

It has what a team would build for throughput: a process for each core, batches of all waiting requests with one run of
each model, one vector search and one sparse matrix product per table for a batch, histories that are aggregated once,
features of items that are computed once a second, and the vector index that is the fastest on this machine. Has no
writes, filters, policy, reasons, paging and validation.

    server.py --bundle DIR --vectors DIR --data DIR --port N --processes N --stubs DIR
"""
import os

# A process for each core: threads of the libraries would only compete with each other. Read when they are imported.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import argparse
import hashlib
import json
import multiprocessing
import queue
import re
import sys
import threading
import time
import unicodedata
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import faiss
import grpc
import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
import scipy.sparse
import tantivy
from usearch.index import Index as UsearchIndex

SOURCE_COUNT, CANDIDATE_COUNT = 150, 250
# Greatest number of requests that are answered together.
BATCH_MAX = 16
WEIGHTS = {"user_vector": 1.0, "query_vector": 1.0, "lexical": 2.0, "transitions": 1.0, "co_purchases": 0.7,
           "item_to_item": 1.0, "similar_texts": 1.0, "similar_histories": 1.0, "popular": 0.5,
           "history": 1.2}
# The constants of reciprocal rank fusion: small for queries, 60 for other sources.
CONSTANTS = {"query_vector": 10.0, "lexical": 10.0}
RECENT_MAX, RECENT_DECAY, EVENTS_MAX = 12, 0.85, 200
DAY_MS = 86_400_000
# Half-lives in days: of popularity, of the numbers of buyers, and of a user's purchases of an item.
SLOW, FAST = 60.0, 7.0
BUYERS = np.array([60.0, 7.0, 2.0, 20.0, np.inf])
BOUGHT = np.array([14.0, 60.0, 180.0])
ITEM_TO_ITEM_FLOOR, CO_PURCHASE_FLOOR, WEIGHT_FLOOR = 0.01, 0.001, 0.1
# Histories that are read for one item, and those whose items are scored.
POSTINGS_MAX, SIMILAR_HISTORIES_MAX = 300, 100
KINDS = {name: number for number, name in enumerate(
    ["search", "impression", "view", "click", "add_to_cart", "remove_from_cart", "favorite", "unfavorite", "review",
     "purchase", "refund", "category_view", "incentive_shown", "incentive_redeemed"], start=1)}
IMPRESSION, VIEW, CLICK, ADD_TO_CART, REMOVE_FROM_CART = 2, 3, 4, 5, 6
FAVORITE, UNFAVORITE, REVIEW, PURCHASE, REFUND = 7, 8, 9, 10, 11
# By kind: the weight in popularity, and the interest from which the item-to-item model starts.
POPULARITY, INTEREST = np.zeros((2, len(KINDS) + 1), np.float32)
POPULARITY[[VIEW, CLICK, REVIEW]], POPULARITY[[ADD_TO_CART, FAVORITE]], POPULARITY[PURCHASE] = 1.0, 2.0, 4.0
INTEREST[[VIEW, CLICK, REVIEW]], INTEREST[[ADD_TO_CART, FAVORITE]], INTEREST[PURCHASE] = 0.4, 0.7, 1.0
# The columns of the ranking model's input and their version, as in crates/pipeline/src/features/mod.rs.
FEATURES_VERSION = 9
FEATURES = [
    "user_similarity", "user_known", "query_similarity", "lexical_score", "lexical_score_relative", "transition_weight",
    "transition_weight_last", "co_purchase_weight", "item_to_item_weight", "similar_last", "similar_max",
    "title_similar_max", "popularity", "trend", "buyers_60", "buyers_7", "buyers_2", "buyers_20", "buyers_ever",
    "event_days_since", "bought_count", "bought_days_since", "bought_share", "bought_decayed_14", "bought_decayed_60",
    "bought_decayed_180", "bought_interval", "bought_due", "seen_count", "seen_days_since", "is_in_cart", "is_favorite",
    "refunded_count", "price", "price_to_user", "item_age_days", "retrieval_score", "has_query", "history_length",
    "basket_count", "basket_days_since", "text_weight", "text_weight_last", "similar_history_weight", "is_similar_list",
    "is_together_list", "anchor_similar", "anchor_title_similar", "anchor_transition_weight",
    "anchor_co_purchase_weight", "anchor_item_to_item_weight"]
COLUMN = {name: column for column, name in enumerate(FEATURES)}


def columns(first, last):
    """Returns the columns from one feature to another."""
    return slice(COLUMN[first], COLUMN[last] + 1)


# The features of an item alone, and of a user's events on an item.
ITEM_COLUMNS = columns("popularity", "event_days_since")
STATS_COLUMNS = columns("bought_count", "refunded_count")
# The statistics of an item without events of the user.
NO_STATS = np.zeros(len(FEATURES), np.float32)
NO_STATS[[COLUMN[name] for name in ("bought_days_since", "bought_interval", "seen_days_since")]] = -1.0
NO_STATS = NO_STATS[STATS_COLUMNS]


def neighbours(path):
    """Reads a table of neighbours (docs/bundle.md) as a sparse matrix: row, neighbour, weight."""
    raw = path.read_bytes()
    rows, pairs = np.frombuffer(raw, "<u8", 2, 8)
    offsets, neighbours = np.split(np.frombuffer(raw, "<u4", int(rows + 1 + pairs), 24), [int(rows) + 1])
    weights = np.frombuffer(raw, "<f4", int(pairs), 24 + 4 * int(rows + 1 + pairs))
    return scipy.sparse.csr_array((weights, neighbours.astype(np.int32), offsets.astype(np.int32)),
                                  shape=(int(rows), int(rows)))


class Histories:
    """Earlier histories (docs/bundle.md), scored as in crates/index/src/histories.rs."""

    def __init__(self, path):
        raw = path.read_bytes()
        self.row_count, histories, items = (int(count) for count in np.frombuffer(raw, "<u8", 3, 8))
        self.offsets = np.frombuffer(raw, "<u4", histories + 1, 32).astype(np.int64)
        self.items = np.frombuffer(raw, "<u4", items, 32 + 4 * (histories + 1)).astype(np.int64)
        owner = np.repeat(np.arange(histories), np.diff(self.offsets))
        # By item, the latest history first, each once.
        pairs = np.unique(self.items * histories + (histories - 1 - owner))
        item, history = pairs // max(histories, 1), histories - 1 - pairs % max(histories, 1)
        counts = np.bincount(item, minlength=self.row_count)
        rarity = np.maximum(np.log(histories / np.maximum(counts, 1)), 0.1).astype(np.float32)
        is_kept = np.arange(len(item)) - (np.cumsum(counts) - counts)[item] < POSTINGS_MAX
        item, history = item[is_kept], history[is_kept]
        shape = self.row_count, histories
        self.postings = scipy.sparse.csr_array(
            (rarity[item], (item.astype(np.int32), history.astype(np.int32))), shape)

    def scores(self, recent):
        """Returns the scores of all items for users with the recent items [users × items]."""
        similarity = (recent @ self.postings).tocsr()
        out = np.zeros((recent.shape[0], self.row_count), np.float32)
        for at, scores in enumerate(out):
            span = slice(similarity.indptr[at], similarity.indptr[at + 1])
            found, similar = similarity.indices[span], similarity.data[span]
            best = np.lexsort((-found, -similar))[:SIMILAR_HISTORIES_MAX]
            if not len(best):
                continue
            found, similar = found[best], similar[best]
            lengths = self.offsets[found + 1] - self.offsets[found]
            starts = np.cumsum(lengths) - lengths
            position = np.arange(lengths.sum()) - np.repeat(starts, lengths)
            items = self.items[np.repeat(self.offsets[found], lengths) + position]
            is_known = np.zeros(self.row_count, bool)
            is_known[recent.indices[recent.indptr[at] : recent.indptr[at + 1]]] = True
            # The latest item that the user has too.
            shared = np.maximum.reduceat(np.where(is_known[items], position, 0), starts)
            distance = np.abs(position - np.repeat(shared, lengths))
            np.add.at(scores, items, np.repeat(similar / np.sqrt(lengths), lengths) / (1.0 + 0.5 * distance))
        return out


def since(days):
    """Returns ln(1 + days), or -1 for never."""
    return np.where(np.isfinite(days), np.log1p(days), -1.0)


class FlatIndex:
    """Exact search by a matrix product."""

    def __init__(self, vectors, _):
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)

    def search(self, queries, count):
        return self.index.search(queries, count)[1]


class HnswIndex:
    """The graph of faiss."""

    def __init__(self, vectors, width):
        self.index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction, self.index.hnsw.efSearch = 200, width
        self.index.add(vectors)

    def search(self, queries, count):
        return self.index.search(queries, count)[1]


class Usearch:
    """The graph of usearch with 16-bit floats."""

    def __init__(self, vectors, width):
        self.index = UsearchIndex(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=200,
                                  expansion_search=width)
        self.index.add(np.arange(len(vectors)), vectors, threads=1)

    def search(self, queries, count):
        return np.atleast_2d(self.index.search(queries, count, threads=1).keys)


INDEXES = {"faiss flat": (FlatIndex, [0]), "faiss HNSW": (HnswIndex, [160, 240, 400]), "usearch f16": (Usearch, [160, 240, 400])}
# Recall of the candidates that an index must reach to be chosen.
RECALL = 0.99


def fastest_index(vectors):
    """Measures the indexes on these vectors with batches of 8. Returns name and width of the fastest."""
    queries = vectors[:: max(1, len(vectors) // 512)]
    count = min(SOURCE_COUNT, len(vectors))
    truth = np.argpartition(-(queries @ vectors.T), count - 1, axis=1)[:, :count]
    measured = []
    for name, (kind, widths) in INDEXES.items():
        for width in widths:
            index = kind(vectors, width)
            found = index.search(queries, count)
            recall = np.mean([len(np.intersect1d(a, b)) / count for a, b in zip(found, truth)])
            if recall < RECALL:
                continue
            seconds = []
            for _ in range(3):
                started = time.perf_counter()
                for at in range(0, len(queries), 8):
                    index.search(queries[at : at + 8], count)
                seconds.append(time.perf_counter() - started)
            measured.append((min(seconds), name, width))
            break
    seconds, name, width = min(measured)
    print(f"index {name}, {len(queries) / seconds:.0f} queries/s; " + ", ".join(
        f"{other} {len(queries) / time:.0f}" for time, other, _ in measured if other != name), flush=True)
    return name, width


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
    """Returns hashed words and character n-grams as `text::hashed_terms` does, for Latin texts without accents."""
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

    def __init__(self, bundle, vectors, data, indexes):
        manifest = json.loads((bundle / "manifest.json").read_text())
        self.buckets = manifest["query_encoder"]["hashed_terms"]["bucket_count"]
        self.cosine_min = manifest["relevance"]["cosine_min"]
        self.encoder_events = manifest["encoder_events"]
        heads = manifest["heads"]
        self.scale, self.offset, self.weight = (np.array([h[k] for h in heads], np.float32)
                                                for k in ("scale", "offset", "weight"))
        items = pq.read_table(bundle / "items.parquet").to_pydict()
        self.ids = (vectors / "item_ids.txt").read_text().rstrip("\n").split("\n")
        assert self.ids == items["item_id"], "the vectors are those of another bundle"
        self.row_of = {item: row for row, item in enumerate(self.ids)}
        self.log_price = np.log1p(np.array([(p or 0) / 1e6 for p in items["price_micros"]], np.float32))
        self.created = np.array([c or 0 for c in items["created_ms"]], np.int64)
        self.user_space, self.query_space = (
            np.load(vectors / f"{name}.npy") for name in ("item_vectors", "title_vectors"))
        self.transitions, self.co_purchases, self.item_to_item, self.similar_texts = (
            neighbours(bundle / f"{table}.neighbours")
            for table in ("transitions", "co_purchases", "item_to_item", "similar_texts"))
        self.histories = Histories(bundle / "histories.index")
        self.user_index, self.query_index = (
            INDEXES[name][0](space, width) for space, (name, width) in zip((self.user_space, self.query_space), indexes))
        self.encoder, self.query_encoder, self.ranker = (
            session(bundle / f"{m}.onnx") for m in ("user_encoder", "query_encoder", "ranker"))
        schema = hashlib.sha256(FEATURES_VERSION.to_bytes(4, "little") + ",".join(FEATURES).encode()).hexdigest()[:16]
        assert schema == manifest["feature_schema"], "this program computes other features than the bundle's"
        self.read_events(data)
        self.lexical = self.index_titles(items)
        self.searcher = self.lexical.searcher()

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
        """Folds the imported history, moved so that it ends now, into popularity and the users' features."""
        table = pq.read_table(data / "events.parquet", columns=["user", "type", "time_ms", "item_id"])
        rows = table["item_id"].combine_chunks().dictionary_encode()
        rows = np.array([self.row_of.get(item, -1) for item in rows.dictionary.to_pylist()])[rows.indices.to_numpy()]
        kinds = table["type"].combine_chunks().dictionary_encode()
        kinds = np.array([KINDS[kind] for kind in kinds.dictionary.to_pylist()])[kinds.indices.to_numpy()]
        times = table["time_ms"].to_numpy()
        # The time to which all counts and ages refer.
        self.started = int(time.time() * 1000)
        times = times + (self.started - times.max())
        self.count_popularity(rows, kinds, (self.started - times) / DAY_MS)

        users = table["user"].combine_chunks().dictionary_encode()
        owners = users.indices.fill_null(-1).to_numpy()
        known = np.flatnonzero((rows >= 0) & (owners >= 0) & (kinds != IMPRESSION))
        known = known[np.argsort(owners[known], kind="stable")]
        ends = np.searchsorted(owners[known], np.arange(len(users.dictionary)), side="right")
        self.users = {
            key: self.user(rows[own], kinds[own], times[own])
            for key, own in zip(users.dictionary.to_pylist(), (own[-EVENTS_MAX:] for own in np.split(known, ends[:-1])))}
        self.unknown = self.user(*np.zeros((3, 0), np.int64))

    def count_popularity(self, rows, kinds, days):
        """Counts events and purchases of each item with the decay since the events; `days` are their ages."""
        counted = (rows >= 0) & (POPULARITY[kinds] > 0)
        rows, kinds, days, count = rows[counted], kinds[counted], days[counted], len(self.ids)
        weights, bought = POPULARITY[kinds], kinds == PURCHASE
        self.slow, self.fast = (np.bincount(rows, weights * np.exp2(-days / life), count) for life in (SLOW, FAST))
        self.buyers = np.stack(
            [np.bincount(rows[bought], np.exp2(-days[bought] / life), count) for life in BUYERS], axis=1)
        self.event_days = np.full(count, np.inf)
        np.minimum.at(self.event_days, rows, days)
        self.popular = np.argsort(-self.slow, kind="stable")[: SOURCE_COUNT // 2]
        self.sales_at = 0

    def user(self, rows, kinds, times):
        """Returns the parts of a user's history that features and sources read and that do not depend on the time."""
        newest = rows[::-1][kinds[::-1] != REFUND]
        _, first = np.unique(newest, return_index=True)
        recent = newest[np.sort(first)[:RECENT_MAX]]
        touched, inverse = np.unique(rows, return_inverse=True)
        days, count = (self.started - times) / DAY_MS, len(touched)
        bought, refunded = kinds == PURCHASE, kinds == REFUND
        in_cart = np.isin(kinds, [ADD_TO_CART, REMOVE_FROM_CART, PURCHASE])
        in_favorites = np.isin(kinds, [FAVORITE, UNFAVORITE])
        seen = ~(refunded | in_cart | in_favorites)

        def number(which, weights=None):
            return np.bincount(inverse[which], weights if weights is None else weights[which], count)

        def latest(which, values, none):
            """Returns the value of the latest of these events on each item; the events are in the order of time."""
            found = np.full(count, none, np.float64)
            found[inverse[which]] = values[which]
            return found

        interest = np.zeros(count, np.float32)
        np.maximum.at(interest, inverse, INTEREST[kinds])
        bought_count, bought_days, oldest = number(bought), latest(bought, days, np.inf), np.zeros(count)
        np.maximum.at(oldest, inverse[bought], days[bought])
        interval = np.zeros(count)
        np.divide(oldest - bought_days, bought_count - 1, out=interval, where=bought_count > 1)
        baskets, prices = len(np.unique(times[bought])), self.log_price[rows[bought]]
        decayed = [number(bought, np.exp2(-days / life)) for life in BOUGHT]
        # In the order of STATS_COLUMNS. Columns that depend on the time are filled by `stats`.
        later = np.zeros(count)
        stats = np.stack([
            np.log1p(bought_count), later, bought_count / max(1, baskets), later, later, later,
            np.where(interval > 0, np.log1p(interval), -1.0), later, np.log1p(number(seen)), later,
            latest(in_cart, kinds, 0) == ADD_TO_CART, latest(in_favorites, kinds, 0) == FAVORITE,
            np.log1p(number(refunded))], axis=1, dtype=np.float32)
        encoded = slice(-self.encoder_events, None)
        return {
            "events": (rows[encoded], kinds[encoded], times[encoded]), "recent": recent,
            "recent_weights": RECENT_DECAY ** np.arange(len(recent), dtype=np.float32),
            "chosen": touched[interest > 0], "chosen_weights": interest[interest > 0], "touched": touched, "stats": stats,
            "bought_count": bought_count, "bought_days": bought_days, "seen_days": latest(seen, days, np.inf),
            "decayed": np.stack(decayed, axis=1), "interval": interval, "log_count": np.log1p(len(rows)),
            "log_baskets": np.log1p(baskets), "basket_days": bought_days.min(initial=np.inf),
            "mean_price": prices.mean() if len(prices) else 0.0,
        }

    def encode_users(self, users, now):
        """Returns a vector for each user in one run of the model; none for users without a history."""
        known = [at for at, user in enumerate(users) if len(user["touched"])]
        vectors = [None] * len(users)
        if not known:
            return vectors
        length = max(len(users[at]["events"][0]) for at in known)
        items = np.zeros((len(known), length, self.user_space.shape[1]), np.float32)
        kinds, positions = np.zeros((2, len(known), length), np.int64)
        ages, mask = np.zeros((2, len(known), length), np.float32)
        for line, at in enumerate(known):
            rows, event_kinds, times = users[at]["events"]
            # Padded on the left, because the model reads the last position.
            to = slice(length - len(rows), length)
            items[line, to], kinds[line, to], mask[line, to] = self.user_space[rows], event_kinds, 1.0
            positions[line, to] = np.arange(len(rows) - 1, -1, -1)
            ages[line, to] = np.log1p(np.maximum(0, now - times) / DAY_MS)
        inputs = {"items": items, "kinds": kinds, "positions": positions, "ages": ages, "mask": mask}
        for at, vector in zip(known, self.encoder.run(None, inputs)[0]):
            vectors[at] = vector
        return vectors

    def encode_queries(self, queries):
        """Returns a vector for each query in one run of the model."""
        terms = [hashed_terms(query, self.buckets) for query in queries]
        width = max(map(len, terms))
        ids, mask = np.zeros((len(terms), width), np.int64), np.zeros((len(terms), width), np.float32)
        for line, found in enumerate(terms):
            ids[line, : len(found)], mask[line, : len(found)] = found, 1.0
        return self.query_encoder.run(None, {"term_ids": ids, "mask": mask})[0]

    def spread(self, users):
        """Returns scores for all users and items by each table: the weighted sums of the neighbourhoods of the users'
        recent items, and for the item-to-item model of all items that they chose; and by similar histories."""

        def anchors(kind):
            # scipy copies the tables if the indices are of another type than theirs.
            starts = np.cumsum([0] + [len(user[kind]) for user in users], dtype=np.int32)
            items, weights = (np.concatenate([user[part] for user in users]) for part in (kind, f"{kind}_weights"))
            shape = len(users), len(self.ids)
            return scipy.sparse.csr_array((weights, items.astype(np.int32), starts), shape)

        recent, chosen = anchors("recent"), anchors("chosen")
        last = scipy.sparse.vstack(
            [recent[[at]] if not len(user["recent"]) else self.unit(user["recent"][0]) for at, user in enumerate(users)],
            format="csr")
        products = (recent @ self.transitions, recent @ self.co_purchases, chosen @ self.item_to_item,
                    recent @ self.similar_texts, last @ self.similar_texts)
        return [product.toarray() for product in products] + [self.histories.scores(recent)]

    def unit(self, row):
        """Returns a line with the weight 1 of an item."""
        return scipy.sparse.csr_array(
            (np.ones(1, np.float32), np.array([row], np.int32), np.array([0, 1], np.int32)), (1, len(self.ids)))

    @staticmethod
    def top(scores, count):
        best = np.argpartition(-scores, count)[:count] if len(scores) > count else np.arange(len(scores))
        best = best[scores[best] > 0]
        return best[np.argsort(-scores[best], kind="stable")]

    def find_words(self, query):
        """Returns the rows and scores of the lexical source, and how many of them match all words."""
        plain = re.sub(r"[^\w ]", " ", query)
        all_words = self.lexical.parse_query(plain, ["title"], conjunction_by_default=True)
        found = {address.doc: score for score, address in self.searcher.search(all_words, SOURCE_COUNT).hits}
        complete_count = len(found)
        if complete_count < SOURCE_COUNT:
            for score, address in self.searcher.search(self.lexical.parse_query(plain, ["title"]), SOURCE_COUNT).hits:
                if len(found) < SOURCE_COUNT:
                    found.setdefault(address.doc, score)
        return np.fromiter(found, np.int64), np.fromiter(found.values(), np.float32), complete_count

    def sales(self, now):
        """Returns ITEM_COLUMNS of all items, computed at most once a second."""
        if now - self.sales_at >= 1000:
            elapsed = (now - self.started) / DAY_MS
            slow, fast = self.slow * 2 ** (-elapsed / SLOW), self.fast * 2 ** (-elapsed / FAST)
            trend = (fast * np.log(2) / FAST + 1) / (slow * np.log(2) / SLOW + 1)
            buyers = self.buyers * np.exp2(-elapsed / BUYERS)
            self.sales_of_items = np.column_stack(
                [np.log1p(slow), np.log1p(trend), np.log1p(buyers), since(self.event_days + elapsed)]).astype(np.float32)
            self.sales_at = now
        return self.sales_of_items

    def stats(self, users, now):
        """Returns STATS_COLUMNS of all items of the users' histories, and their keys in ascending order: the user's
        number × items + row. The last line is that of all other items."""
        elapsed = (now - self.started) / DAY_MS

        def of_all(part):
            return np.concatenate([user[part] for user in users])

        owners = np.repeat(np.arange(len(users)), [len(user["touched"]) for user in users])
        keys = owners * len(self.ids) + of_all("touched")
        out = np.vstack([of_all("stats"), NO_STATS])
        days, interval = of_all("bought_days") + elapsed, of_all("interval")
        ratio = np.divide(days, interval, out=np.zeros(len(days)), where=interval > 0)
        first = STATS_COLUMNS.start
        out[:-1, COLUMN["bought_days_since"] - first] = since(days)
        decayed = columns("bought_decayed_14", "bought_decayed_180")
        out[:-1, decayed.start - first : decayed.stop - first] = np.log1p(of_all("decayed") * np.exp2(-elapsed / BOUGHT))
        out[:-1, COLUMN["bought_due"] - first] = np.minimum(ratio, 1 / np.maximum(ratio, 1e-30))
        out[:-1, COLUMN["seen_days_since"] - first] = since(of_all("seen_days") + elapsed)
        return np.append(keys, np.iinfo(np.int64).max), out

    def features(self, candidates, users, user_vectors, query_vectors, lexical, spread, fused, now):
        """Returns the ranking features of the candidates of all requests, [sum of candidates × FEATURES]."""
        rows, owner = np.concatenate(candidates), np.repeat(np.arange(len(users)), [len(own) for own in candidates])
        out = np.zeros((len(rows), len(FEATURES)), np.float32)

        def of_user(part):
            return np.array([user[part] for user in users])[owner]

        transitions, co_purchases, item_to_item, *sequences = (scores[owner, rows] for scores in spread)
        out[:, columns("text_weight", "similar_history_weight")] = np.log(
            np.column_stack(sequences) + WEIGHT_FLOOR)
        out[:, COLUMN["transition_weight"]] = np.log1p(transitions)
        out[:, COLUMN["co_purchase_weight"]] = np.log(co_purchases + CO_PURCHASE_FLOOR)
        out[:, COLUMN["item_to_item_weight"]] = np.log(item_to_item + ITEM_TO_ITEM_FLOOR)
        out[:, ITEM_COLUMNS] = self.sales(now)[rows]
        keys, stats = self.stats(users, now)
        wanted = owner * len(self.ids) + rows
        at = np.searchsorted(keys, wanted)
        out[:, STATS_COLUMNS] = stats[np.where(keys[at] == wanted, at, -1)]
        price, mean_price, created = self.log_price[rows], of_user("mean_price"), self.created[rows]
        out[:, COLUMN["price"]] = price
        out[:, COLUMN["price_to_user"]] = np.where((price > 0) & (mean_price > 0), price - mean_price, 0.0)
        out[:, COLUMN["item_age_days"]] = np.where(created > 0, np.log1p(np.maximum(0, now - created) / DAY_MS), 0.0)
        out[:, COLUMN["retrieval_score"]] = fused[owner, rows]
        out[:, COLUMN["history_length"]] = of_user("log_count")
        out[:, COLUMN["basket_count"]] = of_user("log_baskets")
        out[:, COLUMN["basket_days_since"]] = since(of_user("basket_days") + (now - self.started) / DAY_MS)

        items, titles = self.user_space[rows], self.query_space[rows]
        ends = np.cumsum([len(own) for own in candidates])
        for end, own_rows, user, user_vector, query_vector, words in zip(
                ends, candidates, users, user_vectors, query_vectors, lexical):
            span = slice(end - len(own_rows), end)
            own, recent = out[span], user["recent"]
            if user_vector is not None:
                own[:, COLUMN["user_similarity"]], own[:, COLUMN["user_known"]] = items[span] @ user_vector, 1.0
            if query_vector is not None:
                own[:, COLUMN["query_similarity"]], own[:, COLUMN["has_query"]] = titles[span] @ query_vector, 1.0
                score = words[own_rows]
                own[:, COLUMN["lexical_score"]] = score
                own[:, COLUMN["lexical_score_relative"]] = score / max(score.max(initial=0.0), 1e-9)
            if len(recent):
                pairs = slice(self.transitions.indptr[recent[0]], self.transitions.indptr[recent[0] + 1])
                last = np.zeros(len(self.ids), np.float32)
                last[self.transitions.indices[pairs]] = self.transitions.data[pairs]
                own[:, COLUMN["transition_weight_last"]] = np.log1p(last[own_rows])
                same = own_rows[:, None] == recent[None]
                similar = np.where(same, 0.0, items[span] @ self.user_space[recent].T)
                own[:, COLUMN["similar_last"]], own[:, COLUMN["similar_max"]] = similar[:, 0], similar.max(1)
                title_similar = np.where(same, 0.0, titles[span] @ self.query_space[recent].T)
                own[:, COLUMN["title_similar_max"]] = title_similar.max(1)
        return out

    def answers(self, requests):
        """Answers requests together: (user, query, number of results); a query of None requests recommendations.
        Returns the ids and scores of the best items of each."""
        now = int(time.time() * 1000)
        users = [self.users.get(key, self.unknown) for key, _, _ in requests]
        user_vectors = self.encode_users(users, now)
        spread = self.spread(users)
        transitions, co_purchases, item_to_item, similar_texts, _, histories = spread
        fused = np.zeros((len(requests), len(self.ids)), np.float32)
        query_vectors, lexical, complete = ([None] * len(requests) for _ in range(3))

        def fuse(at, source, rows):
            fused[at, rows] += WEIGHTS[source] / (CONSTANTS.get(source, 60.0) + 1 + np.arange(len(rows), dtype=np.float32))

        searches = [at for at, (_, query, _) in enumerate(requests) if query is not None]
        if searches:
            vectors = self.encode_queries([requests[at][1] for at in searches])
            for at, vector, rows in zip(searches, vectors, self.query_index.search(vectors, SOURCE_COUNT)):
                found, scores, complete_count = self.find_words(requests[at][1])
                query_vectors[at], complete[at] = vector, found[:complete_count]
                lexical[at] = np.zeros(len(self.ids), np.float32)
                lexical[at][found] = scores
                fuse(at, "lexical", found)
                relevant = self.query_space[rows] @ vector >= self.cosine_min
                fuse(at, "query_vector", rows[relevant | np.isin(rows, found)])
        recommendations = [at for at, (_, query, _) in enumerate(requests) if query is None]
        known = [at for at in recommendations if user_vectors[at] is not None]
        if known:
            vectors = np.stack([user_vectors[at] for at in known])
            for at, rows in zip(known, self.user_index.search(vectors, SOURCE_COUNT)):
                fuse(at, "user_vector", rows)
        for at in recommendations:
            user = users[at]
            fuse(at, "transitions", self.top(transitions[at], SOURCE_COUNT))
            fuse(at, "co_purchases", self.top(co_purchases[at], SOURCE_COUNT // 2))
            fuse(at, "item_to_item", self.top(item_to_item[at], SOURCE_COUNT))
            fuse(at, "similar_texts", self.top(similar_texts[at], SOURCE_COUNT))
            fuse(at, "similar_histories", self.top(histories[at], SOURCE_COUNT))
            days = user["bought_days"] + (now - self.started) / DAY_MS
            history = user["bought_count"] / (1.0 + np.log1p(days))
            fuse(at, "history", user["touched"][self.top(history, SOURCE_COUNT)])
            fuse(at, "popular", self.popular)

        candidates = [self.top(scores, CANDIDATE_COUNT) for scores in fused]
        features = self.features(
            candidates, users, user_vectors, query_vectors, lexical, spread, fused, now)
        if not len(features):
            return [[] for _ in requests]
        logits = self.ranker.run(None, {"features": features})[0]
        scores = (self.weight / (1.0 + np.exp(-(self.scale * logits + self.offset)))).sum(1)
        answers = []
        for rows, own, words, (_, _, size) in zip(
                candidates, np.split(scores, np.cumsum([len(rows) for rows in candidates])[:-1]), complete, requests):
            if words is not None:
                own = own + np.isin(rows, words)
            best = np.argsort(-own, kind="stable")[:size]
            answers.append([(self.ids[rows[at]], float(own[at])) for at in best])
        return answers


class Batcher:
    """Answers all requests that wait together, in a thread of its own."""

    def __init__(self, shop):
        self.shop, self.waiting = shop, queue.SimpleQueue()
        threading.Thread(target=self.run, daemon=True).start()

    def answer(self, key, query, size):
        answered = Future()
        self.waiting.put(((key, query, size), answered))
        return answered.result()

    def run(self):
        while True:
            batch = [self.waiting.get()]
            while len(batch) < BATCH_MAX:
                try:
                    batch.append(self.waiting.get_nowait())
                except queue.Empty:
                    break
            try:
                answers = self.shop.answers([request for request, _ in batch])
            except Exception as error:  # The callers receive it.
                for _, answered in batch:
                    answered.set_exception(error)
                continue
            for (_, answered), answer in zip(batch, answers):
                answered.set_result(answer)


def serve(arguments, number, indexes):
    """Serves in this process until it is terminated. All processes share the port."""
    sys.path.insert(0, arguments.stubs)
    from lodestone.v1 import answer_pb2, ranking_service_pb2 as messages, ranking_service_pb2_grpc as services
    batcher = Batcher(Shop(arguments.bundle, arguments.vectors, arguments.data, indexes))

    class Ranking(services.RankingServiceServicer):
        def results(self, request, query):
            viewer = request.viewer
            key = f"u:{viewer.user_id}" if viewer.user_id else f"v:{viewer.visitor_id}"
            found = batcher.answer(key, query, request.page_size or 24)
            return [answer_pb2.Result(item_id=item, rank=rank, score=score)
                    for rank, (item, score) in enumerate(found, start=1)]

        def Recommend(self, request, context):
            return messages.RecommendResponse(results=self.results(request, None), attribution_token=str(uuid.uuid4()))

        def Search(self, request, context):
            return messages.SearchResponse(results=self.results(request, request.query), attribution_token=str(uuid.uuid4()))

    server = grpc.server(ThreadPoolExecutor(max_workers=32), options=[("grpc.so_reuseport", 1)])
    services.add_RankingServiceServicer_to_server(Ranking(), server)
    server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    server.start()
    # One write: the lines of several processes would mix otherwise.
    os.write(sys.stdout.fileno(), f"serving {number}\n".encode())
    server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True, help="directory of `lodestone bundle export-vectors`")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--stubs", required=True)
    arguments = parser.parse_args()
    spaces = [np.load(arguments.vectors / f"{name}.npy") for name in ("item_vectors", "title_vectors")]
    chosen = [fastest_index(space) for space in spaces]
    workers = [multiprocessing.get_context("spawn").Process(target=serve, args=(arguments, n, chosen), daemon=True)
               for n in range(arguments.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

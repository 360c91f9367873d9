"""Makes every kind of call to a running server once, through grpcurl, and checks the answers.

usage: demo.py HOST:PORT GRPCURL

Exits with 1 if a check fails or a call ends with an error. Items that it adds to the catalogue are deleted at the end.
"""
import datetime
import json
import subprocess
import sys
import uuid

SERVICES = ["grpc.health.v1.Health", "lodestone.v1.CatalogService", "lodestone.v1.EventService",
            "lodestone.v1.IncentiveService", "lodestone.v1.LoyaltyService", "lodestone.v1.RankingService", "lodestone.v1.RuleService",
            "lodestone.v1.ServingConfigService", "lodestone.v1.SynonymService"]
# Deadline of one call.
CALL_SECONDS_MAX = 10
# Lines that are printed of one answer.
ANSWER_LINES_MAX = 8

# Different in every run, so that a second run against the same server does not find the history of the first.
RUN = uuid.uuid4().hex[:8]
VIEWER = {"user_id": f"demo-{RUN}", "visitor_id": f"browser-{RUN}", "session_id": f"visit-{RUN}", "locale": "en-GB"}
TEAPOT = f"demo-teapot-{RUN}"
SCARF = f"demo-scarf-{RUN}"

failures = []
checks = 0


class CallFailed(Exception):
    """The call ended with a gRPC status other than OK."""


def grpcurl(*arguments):
    """Runs grpcurl and returns its output. Raises CallFailed with its message."""
    done = subprocess.run([GRPCURL, "-plaintext", "-emit-defaults", "-max-time", str(CALL_SECONDS_MAX), *arguments],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CallFailed(done.stderr.strip())
    return done.stdout


def shortened(answer):
    """Returns lines of an answer without its empty fields, at most ANSWER_LINES_MAX."""
    def without_empty(value):
        if isinstance(value, dict):
            kept = {key: without_empty(part) for key, part in value.items()}
            return {key: part for key, part in kept.items() if part not in ("", "0", 0, None, [], {}, False)}
        if isinstance(value, list):
            return [without_empty(part) for part in value]
        return value

    lines = []
    for key, value in without_empty(answer).items():
        parts = value if isinstance(value, list) else [value]
        lines += [f"{key}: {json.dumps(part, ensure_ascii=False)}" for part in parts[:3]]
        if len(parts) > 3:
            lines.append(f"{key}: ... {len(parts)} in all")
    lines = [line if len(line) <= 150 else line[:147] + "..." for line in lines]
    return lines[:ANSWER_LINES_MAX] + (["..."] if len(lines) > ANSWER_LINES_MAX else [])


def call(method, request, title):
    """Makes a call, prints it and its answer, and returns the answer."""
    print(f"\n# {title}\n{method.rsplit('.', 1)[-1]}")
    answer = json.loads(grpcurl("-d", json.dumps(request), ADDRESS, method))
    for line in shortened(answer):
        print(f"    {line}")
    return answer


def check(holds, name):
    """Prints a check and notes it if it does not hold."""
    global checks
    checks += 1
    if holds:
        print(f"  ok    {name}")
    else:
        print(f"  WRONG {name}")
        failures.append(name)


def ids(answer, field="results"):
    return [result["itemId"] for result in answer[field]]


def statuses(answer):
    return [result["status"] for result in answer["results"]]


def ranking(method):
    return f"lodestone.v1.RankingService/{method}"


def time_ago(**ago):
    then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(**ago)
    return then.strftime("%Y-%m-%dT%H:%M:%SZ")


def list_services_and_check_health():
    print("# The services of the server, by reflection\nlist")
    offered = grpcurl(ADDRESS, "list").split()
    print("    " + " ".join(offered))
    check(set(SERVICES) <= set(offered), "every service is listed")
    for service in ("", "liveness"):
        health = call("grpc.health.v1.Health/Check", {"service": service}, f"Health of '{service}'")
        check(health["status"] == "SERVING", f"'{service}' is serving")


def upsert_two_items():
    items = [
        {"item_id": TEAPOT, "title": "Hand painted ceramic teapot 手绘陶瓷茶壶", "categories": ["Home", "Kitchen"],
         "brand": "Lodestone Pottery", "price_micros": 24_950_000, "currency_code": "GBP", "stock_quantity": 12,
         "attributes": {"litres": {"number": 1.2}}},
        {"item_id": SCARF, "title": "Mulberry silk scarf 桑蚕丝围巾", "price_micros": 31_000_000, "currency_code": "GBP"},
        {"item_id": f"demo-untitled-{RUN}"},
    ]
    answer = call("lodestone.v1.CatalogService/UpsertItems", {"items": items}, "Two new products, and one without a title")
    check(statuses(answer) == ["ITEM_STATUS_CREATED", "ITEM_STATUS_CREATED", "ITEM_STATUS_REJECTED"],
          "two are created, the third is rejected")
    check(any("title" in violation["field"] for violation in answer["results"][2]["violations"]),
          "the rejection names the field")
    got = call("lodestone.v1.CatalogService/GetItem", {"item_id": TEAPOT}, "The current content of a product")
    check(got["item"]["priceMicros"] == "24950000" and got["item"]["title"].endswith("手绘陶瓷茶壶"),
          "price and title are as written")


def search_the_new_items():
    for query, wanted in (("hand painted ceramic teapot", TEAPOT), ("陶瓷茶壶", TEAPOT), ("桑蚕丝围巾", SCARF)):
        answer = call(ranking("Search"), {"viewer": VIEWER, "query": query, "page_size": 10}, f"Search: {query}")
        check(wanted in ids(answer)[:3], f"'{query}' finds {wanted} among the first three")
    answer = call(ranking("Search"), {"viewer": VIEWER, "query": "teapot", "page_size": 20,
                                      "filter": 'brand = "Lodestone Pottery" AND price <= 30'}, "Search with a filter")
    check(ids(answer) == [TEAPOT], "the filter leaves only the teapot")


def search_two_pages():
    """Returns the items of the first two pages and the attribution token of the answer."""
    request = {"viewer": VIEWER, "query": "heart holder", "page_size": 5, "options": {"read_mask": {"paths": ["*"]}}}
    first = call(ranking("Search"), request, "Search: heart holder")
    second = call(ranking("Search"), {**request, "page_token": first["nextPageToken"]}, "The next page")
    found = ids(first) + ids(second)
    check(len(found) == 10 and len(set(found)) == 10, "two pages of five have ten different products")
    check([result["rank"] for result in first["results"] + second["results"]] == list(range(1, 11)),
          "the ranks continue on the second page")
    check(all(result["item"]["title"] for result in first["results"]), "each result has its product")
    check(bool(first["attributionToken"]), "the answer has an attribution token")
    return found, first["attributionToken"]


def write_events(found, token):
    """Writes purchases of the first product and interactions with the next two. Returns the log position."""
    def event(name, kind, item, when, **more):
        return {"event_id": f"{name}-{RUN}", "type": f"EVENT_TYPE_{kind}", "viewer": VIEWER, "occurred_time": when,
                "lines": [{"item_id": item, "quantity": 1, "rank": found.index(item) + 1}], **more}

    events = [
        event("purchase-1", "PURCHASE", found[0], time_ago(days=60), order_id=f"order-1-{RUN}"),
        event("purchase-2", "PURCHASE", found[0], time_ago(days=30), order_id=f"order-2-{RUN}"),
        event("click", "CLICK", found[1], time_ago(minutes=3), attribution_token=token),
        event("view-1", "VIEW", found[1], time_ago(minutes=2), attribution_token=token),
        event("view-2", "VIEW", found[2], time_ago(minutes=1)),
        event("cart", "ADD_TO_CART", found[2], time_ago(seconds=30)),
    ]
    method = "lodestone.v1.EventService/WriteEvents"
    answer = call(method, {"events": events}, "Events of the shopper")
    check(statuses(answer) == ["EVENT_STATUS_ACCEPTED"] * len(events), "every event is accepted")
    check(not any(result["warnings"] for result in answer["results"]), "no warning: the attribution token is valid")
    again = call(method, {"events": events[:1]}, "The first event again")
    check(statuses(again) == ["EVENT_STATUS_DUPLICATE"], "the second is a duplicate")
    return answer["consistencyToken"]


def recommend_everything(found, version):
    def recommend(kind, **more):
        request = {"viewer": VIEWER, "type": f"RECOMMEND_TYPE_{kind}", "page_size": 8,
                   "options": {"consistency_token": version}, **more}
        answer = call(ranking("Recommend"), request, f"Recommend: {kind}")
        check(len(ids(answer)) > 0 and len(set(ids(answer))) == len(ids(answer)), f"{kind} returns different products")
        return answer

    for_you = recommend("FOR_YOU")
    check(for_you["info"]["userKnown"], "the shopper is known")
    check(for_you["consistencyToken"] >= version, "the answer reflects the events that were just written")
    for kind in ("SIMILAR", "BOUGHT_TOGETHER"):
        check(found[0] not in ids(recommend(kind, anchor_item_ids=[found[0]])), f"{kind} does not return its anchor")
    check(found[0] in ids(recommend("BUY_AGAIN")), "BUY_AGAIN returns the product that was bought twice")
    recommend("TRENDING")
    check(ids(recommend("RECENTLY_VIEWED"))[:2] == [found[2], found[1]], "RECENTLY_VIEWED returns the latest view first")


def rank_and_suggest(found):
    candidates = found[:5] + [f"unknown-{RUN}"]
    answer = call(ranking("Rank"), {"viewer": VIEWER, "candidates": [{"item_id": item} for item in candidates]},
                  "Rank: five products and an unknown one")
    check(sorted(ids(answer)) == sorted(candidates), "every candidate is returned")
    check(ids(answer)[-1] == candidates[-1], "the unknown one is last")
    check(answer["info"]["unknownItemIds"] == candidates[-1:], "the answer lists it as unknown")
    answer = call(ranking("Suggest"), {"viewer": VIEWER, "prefix": "hear"}, "Suggest: hear")
    check(len(answer["completions"]) > 0, "there are completions")
    check(all("hear" in completion["text"].lower() for completion in answer["completions"]),
          "each completion contains the prefix")


def refuse_a_bad_filter():
    try:
        call(ranking("Search"), {"viewer": VIEWER, "query": "mug", "filter": "price <="}, "An incomplete filter")
        check(False, "an incomplete filter is refused")
    except CallFailed as error:
        print("    " + str(error).replace("\n", "\n    "))
        check("InvalidArgument" in str(error) and "filter" in str(error), "an incomplete filter is refused by its field")


def pin_by_a_rule():
    rule = {"rule_id": f"demo-{RUN}", "condition": {"queries": [{"contains": "heart"}]},
            "actions": [{"pin": {"item_id": TEAPOT, "rank": 1}}, {"banner": "Tea time"}]}
    written = call("lodestone.v1.RuleService/CreateRule", {"rule": rule}, "A rule: the teapot first for all hearts")
    search = {"viewer": VIEWER, "query": "heart", "page_size": 3}
    answer = call("lodestone.v1.RankingService/Search", search, "A search with the rule")
    applied = [applied["etag"] for applied in answer["info"]["appliedRules"]]
    check(answer["results"][0]["itemId"] == TEAPOT, "the pinned product is the first")
    check(applied == [written["rule"]["etag"]], "the answer names the rule")
    check([banner["payload"] for banner in answer["info"]["banners"]] == ["Tea time"], "the answer has the banner")
    call("lodestone.v1.RuleService/DeleteRule", {"rule_id": rule["rule_id"]}, "The rule is deleted")


def answer_with_a_configuration():
    service = "lodestone.v1.ServingConfigService"
    config = {"serving_config_id": f"demo-{RUN}", "ranker": False, "candidates": 20}
    written = call(f"{service}/CreateServingConfig", {"serving_config": config}, "A configuration without the ranking model")
    config = {**config, "candidates": 10, "etag": written["servingConfig"]["etag"]}
    call(f"{service}/UpdateServingConfig", {"serving_config": config}, "The configuration is changed")
    read = call(f"{service}/GetServingConfig", {"serving_config_id": config["serving_config_id"]}, "The configuration")
    search = {"viewer": VIEWER, "query": "heart", "page_size": 3, "options": {"serving_config": config["serving_config_id"]}}
    info = call(ranking("Search"), search, "A search with the configuration")["info"]
    check(info["servingConfigEtag"] == read["servingConfig"]["etag"] != config["etag"], "the answer names the configuration")
    check(info["rankedCount"] == 0, "the ranking model did not run")
    listed = call(f"{service}/ListServingConfigs", {"page_size": 1000}, "All configurations")["servingConfigs"]
    check(config["serving_config_id"] in [entry["servingConfigId"] for entry in listed], "the configuration is listed")
    call(f"{service}/DeleteServingConfig", {"serving_config_id": config["serving_config_id"]}, "The configuration is deleted")


def predict_loyalty():
    service = "lodestone.v1.LoyaltyService"
    answer = call(f"{service}/GetLoyalty", {"user_id": f"demo-nobody-{RUN}"}, "The loyalty of a user without events")
    check(not answer["loyalty"]["hasHistory"] and answer["loyalty"]["segment"] == "LOYALTY_SEGMENT_NEW", "the user is new")
    listed = call(f"{service}/ListAtRisk", {"page_size": 3}, "The users with the highest value at risk")
    check(len(listed["users"]) == 3, "three users are listed")
    ids = [user["userId"] for user in listed["users"]]
    batch = call(f"{service}/BatchGetLoyalty", {"user_ids": ids}, "The scores of these users")
    check([loyalty["userId"] for loyalty in batch["loyalties"]] == ids, "the scores are in the order of the request")
    score = call(f"{service}/GetLoyalty", {"user_id": ids[0]}, "The score of the first, with reasons")["loyalty"]["scores"][-1]
    check(0 < score["purchaseProbability"]["value"] < 1, "the probability of a purchase is within 0 and 1")
    check(len(score["purchaseExplanation"]["contributions"]) == 11, "it has 11 drivers")


def decide_an_incentive():
    service, campaign_id = "lodestone.v1.IncentiveService", f"demo-{RUN}"
    incentive = {"incentive_id": "ten", "percent_off": 10, "cost_micros": "2000000", "valid_days": 14}
    campaign = {"campaign_id": campaign_id, "currency_code": "GBP", "budget_micros": "10000000", "margin": 0.4,
                "holdout_share": 0.1, "allocation": "INCENTIVE_ALLOCATION_RANDOMISED", "user_limit": 1,
                "user_limit_days": 30, "incentives": [incentive]}
    written = call(f"{service}/CreateIncentiveCampaign", {"campaign": campaign}, "A pilot of an incentive")["campaign"]
    campaign = {**campaign, "holdout_share": 0.2, "etag": written["etag"]}
    call(f"{service}/UpdateIncentiveCampaign", {"campaign": campaign}, "Its hold-out is changed")
    request = {"campaign_id": campaign_id, "user_id": VIEWER["user_id"], "decision_id": f"decision-{RUN}"}
    decided = call(f"{service}/DecideIncentive", request, "A decision about the user")
    check(decided["decided"] and 0 < decided["propensity"] < 1, "it has a propensity")
    again = call(f"{service}/DecideIncentive", request, "The same decision again")
    check(again["reason"] == decided["reason"] and again["propensity"] == decided["propensity"], "it is the same")
    another = call(f"{service}/DecideIncentive", {**request, "decision_id": f"another-{RUN}"}, "Another decision")
    check(another["reason"] == "INCENTIVE_REASON_USER_LIMIT", "the limit of the user is reached")
    read = call(f"{service}/GetIncentiveCampaign", {"campaign_id": campaign_id}, "The campaign with its use")
    check(read["use"]["decisionCount"] == "1", "one decision is stored")
    listed = call(f"{service}/ListIncentiveCampaigns", {"page_size": 1000}, "All campaigns")["campaigns"]
    check(campaign_id in [entry["campaignId"] for entry in listed], "the campaign is listed")
    call(f"{service}/DeleteIncentiveCampaign", {"campaign_id": campaign_id}, "The campaign is deleted")


def delete_the_new_items():
    answer = call("lodestone.v1.CatalogService/DeleteItems", {"item_ids": [TEAPOT, SCARF, f"unknown-{RUN}"]},
                  "The new products are deleted")
    check(statuses(answer) == ["ITEM_STATUS_DELETED", "ITEM_STATUS_DELETED", "ITEM_STATUS_UNKNOWN"],
          "two are deleted, the third is unknown")
    answer = call(ranking("Search"), {"viewer": VIEWER, "query": "陶瓷茶壶"}, "Search: 陶瓷茶壶")
    check(TEAPOT not in ids(answer), "a deleted product is not found")
    try:
        call("lodestone.v1.CatalogService/GetItem", {"item_id": TEAPOT}, "The deleted product")
        check(False, "a deleted product: NOT_FOUND")
    except CallFailed as error:
        check("NotFound" in str(error), "a deleted product: NOT_FOUND")


def main():
    list_services_and_check_health()
    upsert_two_items()
    search_the_new_items()
    found, token = search_two_pages()
    if len(found) >= 5:
        version = write_events(found, token)
        recommend_everything(found, version)
        rank_and_suggest(found)
        decide_an_incentive()
    refuse_a_bad_filter()
    pin_by_a_rule()
    answer_with_a_configuration()
    predict_loyalty()
    delete_the_new_items()


ADDRESS, GRPCURL = sys.argv[1:]
try:
    main()
except CallFailed as error:
    print(f"  WRONG the call failed: {error}")
    failures.append("a call failed")
print()
for failure in failures:
    print(f"failed: {failure}", file=sys.stderr)
print(f"demo: {max(checks - len(failures), 0)} passed, {len(failures)} failed")
sys.exit(1 if failures else 0)

import time, json
from tests.nights import *


def test_t(ray_cluster, tiny_backbone):
    t = time.time()
    c, s, r = published_night(tiny_backbone)
    print(json.dumps(r, indent=1), time.time() - t)
    t = time.time()
    nightly(c, s)
    print("again", time.time() - t)
    m = s.read_json("runs/night/metrics.json")
    print(m["training"])
    print(m["systems"]["model"]["all"], m["systems"]["step0"]["all"], m["holdout"])

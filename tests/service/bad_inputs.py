"""Bad inputs, each with what must come of it. HOME stands for the machine's folder, which holds good.json (a spec) and plan.json ('{}').

Jobs there: `canary` succeeded, `circuit` too and left a report, `waiting` is queued, `broken` has failed, `ended` was cancelled.
"""

from __future__ import annotations

LONG = "a" * 5000
BYTE = "\udcff"  # a byte on the command line that is no UTF-8
ASK = "submit --model python-tiny --task quote_close"
MANY = ",".join(str(number) for number in range(1, 18))

# exit code -> command lines, cut at spaces; a '""' is an empty word
COMMANDS: dict[int, str] = {
    2: f"""
submit
submit --model python-tiny
submit --task quote_close
submit --model --task quote_close
submit --model "" --task quote_close
submit --model ../.. --task quote_close
submit --model HOME/plan.json --task quote_close
submit --model broken --task quote_close
submit --model python-tiny --task nonsense
submit --model python-tiny --task ""
submit --model python-tiny --task HOME
submit --model {BYTE} --task quote_close
submit --model python-tiny --task {BYTE}
submit --model python-tiny --task /dev/null/x.jsonl
{ASK} extra
{ASK} --preset huge
{ASK} --seed -1
{ASK} --seed 2147483648
{ASK} --seed 1e3
{ASK} --target-loss nan
{ASK} --target-loss inf
{ASK} --target-loss 0
{ASK} --target-loss 9
{ASK} --trials 0
{ASK} --minutes -1
{ASK} --minutes nan
{ASK} --minutes inf
{ASK} --seeds 0
{ASK} --algorithm guess
{ASK} --set x
{ASK} --set =1
{ASK} --set bridge.optim.lr=
{ASK} --set bridge.optim.lr=nan
{ASK} --set bridge.optim.steps=1e400
{ASK} --set bridge.optim.steps=1.5
{ASK} --set bridge.model.d_model=999999999999999999999999
{ASK} --set bridge.optim=1
{ASK} --set nothing.at.all=1
{ASK} --set bridge.optim.lr=1 --set bridge.optim.lr=2
{ASK} --set prune.targets=0.1,x
{ASK} --set prune.targets=nan
{ASK} --set prune.init_mean=nan
{ASK} --corpus /nowhere
{ASK} --corpus ~nosuchuser/x
{ASK} --corpus ""
{ASK} --corpus {BYTE}
{ASK} --corpus {LONG}
{ASK} --dataset ""
{ASK} --dataset :x
{ASK} --dataset-tokens 0
{ASK} --job-id ../x
{ASK} --job-id ""
{ASK} --job-id {BYTE}
{ASK} --job-id canary
{ASK} --out x
{ASK} --wait --out HOME
{ASK} --wait --out HOME/plan.json/x
{ASK} --priority urgent
submit --nonsense
train --architecture rnn
train --architecture gpt2 --dense
train --match nan
train --match -1
train --task nonsense
train --set prune.trials=2
train --set vocab_size=0
train --set vocab_size=9 --tokenizer python-tiny
train --set optim.context=9999
train --set model.d_model=999999999999999999999999
train --dense --set sparsity.weight_frac=0.1
train --tokenizer HOME
train --corpus HOME/nothing.txt
train --set corpus.seed=x
sweep
sweep --grid width
sweep --grid width=
sweep --grid width=64,64.5
sweep --grid width=64 --grid width=128
sweep --grid width=0
sweep --grid width=65
sweep --grid width=99999999999999999999
sweep --grid l0=nan
sweep --grid l0=1e400
sweep --grid nothing=1
sweep --grid width=64 --grid l0=0.0001
sweep --grid width=64 --set model.d_model=64
sweep --grid width=64 --dense --grid l0=8k
sweep --grid optim.lr={MANY} --grid seed={MANY}
sweep --grid optim.lr={MANY} --grid optim.eps={MANY}
sweep --status ../../etc
sweep --status x --grid width=64
sweep --grid width=64 --out HOME
batch
batch nonsense
batch submit
batch submit --models hub: --task all
batch submit --models hub:x=1 --task all
batch submit --models hub:sort=fame --task all
batch submit --models /nowhere --task all
batch submit --models ~nosuchuser --task all
batch submit --models "" --task all
batch submit --models /dev/null --task all
batch submit --models HOME/plan.json --task all
batch submit --models HOME --task nonsense
batch submit --models HOME --task all --max-params many
batch submit --models HOME --task all --max-params 0
batch submit --models HOME --task all --max-params -5M
batch submit --models HOME --task all --limit 0
batch submit --models HOME --task all --set nope=1
batch submit --models HOME --task all --target-loss 9
batch status
batch status ../x
batch result ../x
batch list --limit 0
status ../../etc/passwd
status ""
status {BYTE}
status {LONG}
status --limit 0
status --limit x
status a b
watch canary --from $
watch canary --from 0-
watch canary --from ٣
watch canary --from 99999999999999999999999
logs ../x
logs canary --since yesterday
logs canary --since 10y
logs canary --since -5m
logs canary --since 9999999999d
cancel
cancel ../x
result canary --out HOME
result canary --out HOME/plan.json/x
result canary --out /proc/x
steer canary
steer canary --toward x --strength 2
steer canary --toward x --strength nan
steer canary --toward x --way sideways
run
run HOME --out HOME/new
run HOME/plan.json --out HOME/new
run HOME/plan.json
run HOME/good.json --out HOME
run HOME/good.json --out HOME/plan.json
run HOME/good.json --out /proc/x
run HOME/good.json --out HOME/new --threads 0
worker --max-jobs 0
worker --idle-exit 0
worker --idle-exit nan
worker --idle-exit inf
worker --threads 0
worker --alive-file /nowhere/x
worker --alive-file HOME
caretaker --alive-file /nowhere/x
caretaker --nonsense
metrics --port 99999
metrics --port x
metrics --host nowhere.invalid --port 0
metrics --host 256.1.1.1 --port 0
server
server restart
server start now
gc --older-than x
gc --older-than 5
gc --older-than -1d
gc --older-than 9999999d
tasks nonsense
tasks show
tasks show quote_close
tasks show nonsense --model python-tiny
tasks show quote_close --model python-tiny --pairs 0
tasks check
tasks check --model python-tiny --task nonsense
tasks check --model python-tiny --target-loss nan
tasks check --model python-tiny --pairs 0
tasks layers
tasks layers quote_close
tasks layers nonsense --model python-tiny
tasks layers all --model python-tiny
tasks layers quote_close --model python-tiny --pairs 0
submit --model python-tiny --task quote_close --layers 5-3
submit --model python-tiny --task quote_close --layers 0-9
submit --model python-tiny --task quote_close --layers 0-1 --init scratch
submit --model python-tiny --task quote_close --layers 0-1 --dense
models extra
list --limit 0
list --limit 10001
import
import /nowhere --out HOME/new
import HOME --out HOME/new
import HOME --out HOME
nonsense
--nonsense
""",
    3: f"""
run /nowhere.json --out HOME/new
submit --model /nowhere --task quote_close
submit --model ~nosuchuser/x --task quote_close
submit --model {LONG} --task quote_close
submit --model a//b --task quote_close
submit --model job:x/0123456789abcdef --task quote_close
submit --model python-tiny --task ~nosuchuser/x.jsonl
{ASK} --adapter /nowhere
{ASK} --adapter ""
{ASK} --dataset ~nosuchuser/x
{ASK} --dataset {LONG}
train --tokenizer /nowhere
train --tokenizer ~nosuchuser
train --tokenizer ""
train --tokenizer {LONG}
sweep --status nothing
batch status nobody
batch watch nobody
batch cancel nobody
batch result nobody
status nobody
watch nobody
logs nobody
logs waiting
cancel nobody
result nobody
result waiting
steer nobody --toward x
steer HOME --toward x
steer canary --toward x
tasks show quote_close --model /nowhere
tasks show quote_close --model python-tiny --adapter /nowhere
tasks check --model /nowhere
""",
    1: """
result broken
watch broken --from 9999999999999
""",
    5: """
result ended
watch ended --from 9999999999999
""",
}

# variable=value, exit code
SETTINGS: dict[str, int] = {
    "EXTRACT_REDIS_URL=nonsense": 2,
    "EXTRACT_REDIS_URL=http://127.0.0.1:1": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:99999/0": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:port/0": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:1/many": 4,
    "EXTRACT_REDIS_URL=redis://[::1/0": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:1/0": 4,
    "EXTRACT_REDIS_URL=redis://user:pa#ss@127.0.0.1:1/0": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:1/0?nonsense=1": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:1/0?db=x": 2,
    "EXTRACT_REDIS_URL=unix://": 2,
    "EXTRACT_REDIS_URL=unix:///nowhere.sock": 4,
    "EXTRACT_REDIS_URL=unix:///nowhere.sock?db=x": 2,
    "EXTRACT_REDIS_URL=rediss://127.0.0.1:1/0?ssl_ca_certs=/nowhere": 2,
    "EXTRACT_REDIS_URL=rediss://127.0.0.1:1/0?ssl_cert_reqs=maybe": 2,
    "EXTRACT_REDIS_URL=rediss://127.0.0.1:1/0?ssl_ca_certs=HOME/plan.json": 4,
    "EXTRACT_REDIS_URL=redis://nowhere.invalid:6379/0": 4,
    "EXTRACT_REDIS_URL=redis://:secret@nowhere.invalid:6379/0": 4,
    "EXTRACT_REDIS_URL_FILE=/nowhere": 2,
    "EXTRACT_REDIS_URL_FILE=HOME": 2,
    "EXTRACT_REDIS_URL_FILE=/dev/null": 2,
    "EXTRACT_REDIS_URL_FILE=HOME/bytes": 2,
    "EXTRACT_STATE_DIR=/proc/x": 4,
    "EXTRACT_STATE_DIR=HOME/plan.json": 4,
    "EXTRACT_ROOT=s3://": 2,
    "EXTRACT_ROOT=s3://user:secret@bucket/x": 2,
    "EXTRACT_ROOT=memory://x": 2,
    "EXTRACT_ROOT=http://localhost:1/x": 2,
    "EXTRACT_ROOT=nosuch://x": 2,
    "EXTRACT_ROOT=HOME/bytes": 2,
    "EXTRACT_REDIS_URL_FILE=/dev/zero": 2,
    "EXTRACT_ROOT=s3://bucket/x?a=1": 2,
    "EXTRACT_ROOT=http://[": 2,
    "EXTRACT_THREADS=0": 2,
    "EXTRACT_THREADS=-1": 2,
    "EXTRACT_THREADS=1.5": 2,
    "EXTRACT_THREADS=many": 2,
    "EXTRACT_THREADS=99999999999999999999": 2,
    "EXTRACT_MAX_ATTEMPTS=0": 2,
    "EXTRACT_LEASE_TTL=0": 2,
    "EXTRACT_LEASE_TTL=nan": 2,
    "EXTRACT_LEASE_TTL=inf": 2,
    "EXTRACT_LEASE_TTL=1e300": 2,
    "EXTRACT_HEARTBEAT=soon": 2,
    "EXTRACT_REAPER=-1": 2,
    "EXTRACT_REPUBLISH=x": 2,
    "EXTRACT_VISIBILITY_TIMEOUT=1e99": 2,
    "EXTRACT_IDLE_EXIT=never": 2,
    "EXTRACT_STOP_GRACE=-0": 2,
    "EXTRACT_STORE_EVERY=x": 2,
    "EXTRACT_STORE_PATIENCE=nan": 2,
}

#!/usr/bin/env bash
# One training run on several machines that reach one another: give the same line on each of them.
#
#     deployment/launch/nodes.sh 2 first-machine pretraining.advanced gpt2-small --data data/web --out runs/small
#
# The machines must see the same files under data/ and runs/, as on NFS. A machine that is started again joins again.
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: $0 NUMBER_OF_MACHINES FIRST_MACHINE MODULE [FLAGS...]" >&2
    exit 2
fi
nodes=$1 first=$2
shift 2
processes=${PROCESSES_PER_NODE:-gpu}  # one per GPU; set it to a number on machines without

# Otherwise processes that torchrun starts again may read where those before them listened, and wait there in vain
# (https://github.com/pytorch/pytorch/issues/135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec python -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$processes" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "${RUN_ID:-train}" -m "$@"

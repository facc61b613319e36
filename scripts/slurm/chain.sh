#!/bin/bash
# The whole chain as jobs that wait for each other, each as stage.sbatch has it.
#
#   scripts/slurm/chain.sh scripts/configs/eight-gpus --gpus-per-node 8 --time 12:00:00
#
# CONFIGS is a folder with a file for each stage, whose paths lead from one to the next. What follows are words of sbatch.
set -eu
configs=$1
shift
stage=$(dirname "$0")/stage.sbatch

submit() { # name, the jobs it waits for, words of sbatch; prints the number of the job
  local name=$1 before=$2
  shift 2
  sbatch --parsable --job-name "cai-$name" ${before:+"--dependency=afterok$before"} --kill-on-invalid-dep=yes "$@" \
    "$stage" "$name" --config "$configs/$name.yaml"
}

revise=$(submit revise "" "$@")
sample=$(submit sample "" "$@")
sft=$(submit sft ":$revise:$sample" "$@")
label=$(submit label ":$sft" "$@")
pmp=$(submit pmp "" "$@")
pm=$(submit train-pm ":$label:$pmp" "$@")
ppo=$(submit ppo ":$pm" "$@")
echo "revise $revise, sample $sample, sft $sft, label $label, pmp $pmp, train-pm $pm, ppo $ppo"

#!/usr/bin/env bash
# A gate for CI: may this model replace that one? Copy it, and give it your two models and your data:
#
#     examples/ci_gate.sh before.onnx after.onnx data.npz
#
# Accuracy is compared on the same samples, and time in fresh processes side by side, so a noisy CI machine does not decide.
set -u
before=$1 after=$2 data=$3

hasten compare "$before" "$after" --data "$data" --max-drop 0.005 --max-slowdown 1.10
code=$?

case $code in
    0) echo "gate: kept: the drop is at most 0.005 and it is at most 10 % slower, both with 95 % confidence" ;;
    6) echo "gate: broken: it is less accurate or slower than allowed" ;;
    7) echo "gate: not decided: give more data (accuracy) or --rounds (time); this script lets it pass"
       code=0 ;;
    *) echo "gate: hasten could not compare them (exit code $code)" ;;
esac
exit $code

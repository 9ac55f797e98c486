"""An MLP on a table with a deadline: 99 of 100 answers within 10 µs, or the reason why not.

python examples/tabular_mlp.py     (needs the extra torch, and scikit-learn)
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn

import hasten

table = load_breast_cancer()  # 569 biopsies, 30 measures of the cells' nuclei each; 0 malignant, 1 benign
x = torch.tensor(StandardScaler().fit_transform(table.data), dtype=torch.float32)
y = torch.tensor(table.target)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(100):
    loss = nn.functional.cross_entropy(model(x[:200]), y[:200])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

task = hasten.Task((x[200:], y[200:]), metric="auc")
deadline = {"max_latency": 10e-6, "percentile": 99, "threads": 1}
result = hasten.optimize(model, task, example_inputs=x[:2], max_drop=0.02, out="tabular_mlp.hasten", force=True, **deadline)

for choice in result.candidates:
    p99 = f"{choice.percentiles['99'] * 1e6:6.1f} µs" if choice.percentiles else "not timed"
    print(f"{choice.state:8} p99 {p99}  {choice.name:35} {choice.reason}")
best = result.best
print(f"{best.name}: {'keeps' if best.percentiles['99'] <= 10e-6 else 'misses'} the deadline; {result.reason or best.ratio}")

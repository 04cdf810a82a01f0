"""Images as arrays (`sources`), and minibatches of them (`batches`)."""

# R's FLASHMM: lmmfit() of all genes in one call, from cells; its only df are n - p.
here <- dirname(sub("--file=", "", grep("--file=", commandArgs(FALSE), value = TRUE)))
source(file.path(here, "harness.R"))

load_package <- function() suppressMessages(library(FLASHMM))
prepare <- function(case) {
  X <<- case$X
  colnames(X) <<- paste0("x", seq_len(ncol(X)) - 1)
  widths <<- apply(case$groups, 2, max) + 1
  Z <<- do.call(cbind, lapply(seq_len(case$k), function(i) model.matrix(~ 0 + factor(case$groups[, i]))))
}
fit <- function(y) {
  Y <- t(y)
  rownames(Y) <- paste0("gene", seq_len(nrow(Y)))
  lmmfit(Y, X, Z, d = widths)
}
estimates <- function(f) rbind(apply(abs(f$dlogL) <= 1e-5, 2, all), f$theta, f$coef, f$se)
tests <- function(f) {
  lmmtest(f)
  matrix(f$df, ncol(X), ncol(f$coef))
}

run("FLASHMM", "n - p", at_once)

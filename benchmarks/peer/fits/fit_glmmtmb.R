# glmmTMB by REML, one call per gene: it has no refit(). Its tests are normal ones.
here <- dirname(sub("--file=", "", grep("--file=", commandArgs(FALSE), value = TRUE)))
source(file.path(here, "harness.R"))

load_package <- function() suppressMessages(library(glmmTMB))
prepare <- function(case) {
  cells <<- case$table
  model <<- formula_of(case)
  components <<- paste0("g", seq_len(case$k))
}
fit <- function(y) {
  cells$y <<- y
  glmmTMB(model, cells, REML = TRUE)
}
estimates <- function(f) {
  variances <- VarCorr(f)$cond
  theta <- c(vapply(components, function(g) variances[[g]][1], 0), sigma(f)^2)
  c(f$fit$convergence == 0 && isTRUE(f$sdr$pdHess), theta, fixef(f)$cond, sqrt(diag(vcov(f)$cond)))
}
tests <- function(f) ifelse(is.na(summary(f)$coefficients$cond[, 4]), NA, Inf)

run("glmmTMB", "normal")

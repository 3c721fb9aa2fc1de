# lme4 by its modular functions (help("modular")): the design once, deviance function and optimiser per gene. It was
# faster than refit(). No derivatives at the optimum, which vignette("lmerperf") advises where they are not looked at.
here <- dirname(sub("--file=", "", grep("--file=", commandArgs(FALSE), value = TRUE)))
source(file.path(here, "harness.R"))

load_package <- function() suppressMessages(library(lme4))
prepare <- function(case) {
  control <<- lmerControl(calc.derivs = FALSE)
  parts <<- lFormula(formula_of(case), case$table, control = control)
}
fit <- function(y) {
  parts$fr$y <- y
  deviance <- do.call(mkLmerDevfun, c(parts, list(control = control)))
  optimum <- optimizeLmer(deviance, calc.derivs = FALSE)
  mkMerMod(environment(deviance), optimum, parts$reTrms, fr = parts$fr)
}
estimates <- function(f) {
  components <- as.data.frame(VarCorr(f))
  k <- nrow(components) - 1
  # lme4 sorts its terms by levels
  order <- match(paste0("g", seq_len(k)), components$grp)
  c(f@optinfo$conv$opt == 0, components$vcov[c(order, k + 1)], fixef(f), sqrt(diag(as.matrix(vcov(f)))))
}
tests <- function(f) NA_real_

run("lme4", "none")

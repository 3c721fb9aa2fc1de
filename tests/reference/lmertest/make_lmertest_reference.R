# anova.csv, criteria.csv and emmeans.csv, of lmerTest, lme4 and emmeans on unbalanced.csv: Rscript make_lmertest_reference.R OUTDIR
suppressMessages({library(lmerTest); library(emmeans)})
out <- commandArgs(TRUE)[1]
set.seed(4)
n <- 240
data <- data.frame(donor = factor(sample(paste0("D", 1:12), n, TRUE)), kind = factor(sample(c("B", "NK", "T"), n, TRUE, c(.5, .3, .2))),
                   dose = sample(c("none", "low", "high"), n, TRUE, c(.2, .3, .5)), age = round(rnorm(n, 5, 2), 2))
data$arm <- factor(ifelse(as.integer(data$donor) %% 3 == 0, "b", "a"))
data$dose <- factor(data$dose, levels = c("high", "low", "none"))
u <- rnorm(12)
data$y <- round(rnorm(n) + 0.7 * u[as.integer(data$donor)] + 0.4 * (data$kind == "T") * (data$arm == "b") + 0.1 * data$age * (data$kind == "NK"), 4)
write.csv(data, file.path(out, "unbalanced.csv"), row.names = FALSE)
control <- lmerControl(optCtrl = list(xtol_rel = 1e-12, ftol_abs = 1e-14), optimizer = "nloptwrap")
models <- c("arm + kind + dose", "arm * kind", "dose + arm * kind + age", "kind * dose * arm", "kind * age + arm", "kind:age + arm", "0 + kind + kind:arm", "arm:kind", "0 + kind", "age + kind:dose + arm")
rows <- NULL; criteria <- NULL
for (model in models) for (reml in c(TRUE, FALSE)) {
  f <- lmer(as.formula(paste("y ~", model, "+ (1 | donor)")), data, REML = reml, control = control)
  criteria <- rbind(criteria, data.frame(model, reml, logLik = as.numeric(logLik(f)), AIC = AIC(f), BIC = BIC(f)))
  if (reml) for (type in 1:3) { a <- anova(f, type = type); rows <- rbind(rows, data.frame(model, type, term = rownames(a), df1 = a$NumDF, df = a$DenDF, F = a$`F value`)) }
}
write.csv(rows, file.path(out, "anova.csv"), row.names = FALSE)
write.csv(criteria, file.path(out, "criteria.csv"), row.names = FALSE)
f <- lmer(y ~ dose + arm * kind * age + (1 | donor), data, control = control)
emm_options(lmer.df = "satterthwaite")
means <- NULL
keep <- function(case, found) { s <- as.data.frame(summary(found)); value <- if ("emmean" %in% names(s)) s$emmean else s$estimate
  labels <- s[, setdiff(names(s), c("emmean", "estimate", "SE", "df", "lower.CL", "upper.CL", "t.ratio", "p.value")), drop = FALSE]
  means <<- rbind(means, data.frame(case, label = apply(labels, 1, function(r) paste(trimws(r), collapse = "|")), value, se = s$SE, df = s$df)) }
keep("arm by kind", emmeans(f, ~ arm | kind))
keep("arm", emmeans(f, ~ arm))
keep("kind proportional", emmeans(f, ~ kind, weights = "proportional"))
keep("kind at age 7", emmeans(f, ~ kind, at = list(age = 7, arm = "b")))
keep("pairs of kind", pairs(emmeans(f, ~ kind), adjust = "none"))
keep("pairs of arm by kind", pairs(emmeans(f, ~ arm | kind), reverse = TRUE))
keep("interaction", contrast(emmeans(f, ~ arm * kind), interaction = "pairwise"))
keep("slope of age by kind", pairs(emmeans(f, ~ age | kind, at = list(age = c(6, 5)))))
write.csv(means, file.path(out, "emmeans.csv"), row.names = FALSE)
p <- lm(log(conc) ~ source + factor(percent), pigs)
write.csv(pigs, file.path(out, "pigs.csv"), row.names = FALSE)

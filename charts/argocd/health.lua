-- The health of a TrainingJob for Argo CD. A running job is Healthy; otherwise a sync wave would wait for days.
local health = {status = "Progressing", message = "waiting for the operator"}
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if status.observedGeneration ~= nil and status.observedGeneration < obj.metadata.generation then
  health.message = "waiting for the operator to see the newest spec"
  return health
end
local holding = {}
for _, condition in ipairs(status.conditions) do
  if condition.status == "True" then
    holding[condition.type] = condition.message
  end
end
for _, rule in ipairs({
  {"Stalled", "Degraded"},
  {"Failed", "Degraded"},
  {"Suspended", "Suspended"},
  {"Reconciling", "Progressing"},
  {"Running", "Healthy"},
  {"Succeeded", "Healthy"},
}) do
  if holding[rule[1]] ~= nil then
    return {status = rule[2], message = holding[rule[1]]}
  end
end
return health

import { Download, RotateCcw } from "lucide-react"
import { Button } from "@/components/ui/button"

// What stands below an answer: the model, its figures, and what one can do with it.
export default function Answer() {
  if (props.waiting) return <div className="answer-waiting text-sm text-muted-foreground">{props.waiting}</div>
  return (
    <div className="answer flex flex-col gap-1 text-xs text-muted-foreground">
      {props.error && <div role="alert" className="answer-error text-sm text-destructive">{props.error}</div>}
      {props.notes.map((note) => <div key={note} className="answer-note">{note}</div>)}
      {props.done && (
        <div className="flex flex-wrap items-center gap-x-2">
          <span className="answer-figures">{[props.label, ...props.figures].join(" · ")}</span>
          <Button variant="ghost" size="sm" className="answer-regenerate h-7 px-2 text-xs"
            onClick={() => callAction({ name: "regenerate", payload: { id: props.message } })}>
            <RotateCcw className="!size-3.5" /> Regenerate
          </Button>
          {["json", "md"].map((kind) => (
            <a key={kind} className="answer-export inline-flex items-center gap-1 hover:underline" download
              href={`/export/${props.thread}.${kind}`}>
              <Download className="size-3.5" /> {kind === "md" ? "Markdown" : "JSON"}
            </a>
          ))}
        </div>
      )}
    </div>
  )
}
